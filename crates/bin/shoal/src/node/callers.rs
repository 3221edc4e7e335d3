//! Every RPC of `proto/` against every kind of caller, over the managers' port as it is served.
//!
//! Owns: the table of who may call what. An RPC without a row, or a row without an RPC, fails.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use pki::{Connector, Expected, NodeKey, NodeTls, RootCa, Subject, wall_now};
use ports::store::Store as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};
use types::{Node, NodeDescription};

use super::*;

/// To whom an RPC is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    /// Also without a certificate.
    Everybody,
    /// Every node of the cluster.
    Nodes,
    /// Managers of the cluster.
    Managers,
    /// Managers of the cluster, on connections of their own protocol.
    Raft,
    /// Not on this port: the local socket alone.
    Nobody,
}

/// The table. A new RPC gets its row here, after some thought.
const RPCS: &[(Open, &str, &[&str])] = &[
    (Open::Everybody, "shoal.v1.Bootstrap", &["GetRoot", "Issue"]),
    (Open::Nodes, "shoal.v1.Certificates", &["Renew"]),
    (
        Open::Nodes,
        "shoal.v1.Dispatcher",
        &["Session", "Managers", "FindNetwork", "ConnectTask", "DisconnectTask", "PublishLogs"],
    ),
    (Open::Managers, "shoal.v1.Membership", &["Join", "Leave"]),
    (
        Open::Managers,
        "shoal.v1.Control",
        &[
            "GetCluster",
            "UpdateCluster",
            "RotateJoinToken",
            "GetJoinTokens",
            "RotateNetworkKey",
            "GetNetworkKeyProgress",
            "ListNodes",
            "GetNode",
            "UpdateNode",
            "RemoveNode",
            "CreateService",
            "ListServices",
            "GetService",
            "UpdateService",
            "RemoveService",
            "ListTasks",
            "GetTask",
            "CreateNetwork",
            "ListNetworks",
            "GetNetwork",
            "RemoveNetwork",
            "PruneNetworks",
            "CheckNetworks",
            "Logs",
        ],
    ),
    (
        Open::Nobody,
        "shoal.v1.Local",
        &[
            "Version",
            "Info",
            "Init",
            "Join",
            "Leave",
            "ListImages",
            "PullImage",
            "LoadImage",
            "RemoveImage",
            "CreateNetwork",
            "ListNetworks",
            "GetNetwork",
            "RemoveNetwork",
            "PruneNetworks",
            "ConnectNetwork",
            "DisconnectNetwork",
        ],
    ),
    (Open::Raft, "shoal.raft.v1.Raft", &["Append", "Heartbeat", "Vote", "Snapshot", "Transfer"]),
];

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// Without a certificate.
    Nobody,
    Worker,
    Manager,
    /// Was a manager, and still has the certificate that says so.
    FormerManager,
    /// As the former one, and its node was removed.
    RemovedManager,
    /// A manager whose certificate has ended.
    ExpiredManager,
    /// A manager of another cluster.
    Foreigner,
    /// Signed by the cluster's CA for a manager, but to be shown by servers only.
    ServerOnly,
    /// The same, to sign programs.
    CodeSigner,
}

const CALLERS: [Caller; 9] = [
    Caller::Nobody,
    Caller::Worker,
    Caller::Manager,
    Caller::FormerManager,
    Caller::RemovedManager,
    Caller::ExpiredManager,
    Caller::Foreigner,
    Caller::ServerOnly,
    Caller::CodeSigner,
];

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Somebody looked at the request itself, whatever the answer was.
    Answered,
    Refused(Code),
    /// The connection was refused: nothing was answered at all.
    NoConnection,
}

/// What is to become of a call on connections of the protocol `raft` or the ordinary one.
fn expected(open: Open, caller: Caller, raft: bool) -> Outcome {
    use Caller as C;
    match (caller, open) {
        (C::ExpiredManager | C::Foreigner | C::ServerOnly | C::CodeSigner, _) => {
            Outcome::NoConnection
        }
        (_, open) if raft != (open == Open::Raft) => Outcome::Refused(Code::Unimplemented),
        (_, Open::Nobody) => Outcome::Refused(Code::Unimplemented),
        (_, Open::Everybody) | (C::Manager, _) => Outcome::Answered,
        (C::Nobody, _) => Outcome::Refused(Code::Unauthenticated),
        (C::Worker | C::FormerManager, Open::Nodes) => Outcome::Answered,
        _ => Outcome::Refused(Code::PermissionDenied),
    }
}

/// `/service/method` of every RPC in `proto/`.
fn described() -> BTreeSet<String> {
    let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../proto");
    let sources = std::fs::read_dir(protos).unwrap().map(|entry| entry.unwrap().path());
    let sources: Vec<_> = sources.filter(|path| path.extension().is_some()).collect();
    let files = protox::compile(sources, [protos]).unwrap();
    let mut paths = BTreeSet::new();
    for file in files.file {
        for service in &file.service {
            for method in &service.method {
                paths.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    paths
}

#[test]
fn the_table_has_every_rpc_of_the_protocol() {
    let row = |(_, service, methods): &(Open, &str, &[&str])| -> Vec<String> {
        methods.iter().map(|method| format!("/{service}/{method}")).collect()
    };
    let rows: BTreeSet<String> = RPCS.iter().flat_map(row).collect();
    assert_eq!(rows, described(), "left: the table of this test; right: proto/");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_rpc_is_open_to_those_that_the_table_says_and_to_nobody_else() {
    let cluster = Served::start().await;
    let mut wrong = Vec::new();
    for caller in CALLERS {
        for raft in [false, true] {
            let Some(connector) = cluster.connector(caller, raft) else { continue };
            for (open, service, methods) in RPCS {
                for method in *methods {
                    let path = format!("/{service}/{method}");
                    let found = cluster.call(connector.clone(), &path).await;
                    let want = expected(*open, caller, raft);
                    if found != want {
                        wrong.push(format!(
                            "{caller:?} raft={raft} {path}: {found:?}, not {want:?}"
                        ));
                    }
                }
            }
        }
    }
    cluster.part.stop().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A manager that is alone and leads, and certificates for all callers.
struct Served {
    part: ManagerPart,
    address: SocketAddr,
    root: RootCa,
    plan: InitPlan,
    tls: Arc<NodeTls>,
    _folder: tempfile::TempDir,
}

impl Served {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plan = InitPlan::new(&v1::InitRequest::default(), IdSource::new(7), wall_now());
        let plan = plan.unwrap();
        let root = RootCa::from_pem(&plan.cluster.ca_certificate, &plan.cluster.ca_key).unwrap();
        let tls = issue(&root, plan.node.0, plan.cluster.id.0, pki::Role::Manager, wall_now());
        let dir = SwarmDir::new(folder.path());
        dir.clear().unwrap();
        std::fs::create_dir(dir.certificates()).unwrap();
        let address = free_address();
        let config = config(folder.path());
        let part = ManagerPart::start(Parts {
            config: &config,
            dir: &dir,
            node: plan.node,
            raft_id: plan.raft_id,
            listen: address,
            advertise: address,
            tls: Arc::clone(&tls),
            ids: IdSource::new(8),
            conditions: watch::Sender::new(Vec::new()),
        });
        let part = part.await.unwrap();
        part.store.raft().bootstrap().await.unwrap();
        let mut leadership = part.store.leadership();
        let leads = leadership.wait_for(|now| now.is_leader);
        tokio::time::timeout(Duration::from_secs(30), leads).await.unwrap().unwrap();
        let served = Self { part, address, root, plan, tls, _folder: folder };
        served.fill().await;
        served
    }

    /// The store knows the manager, a worker that once was one, and one that was removed.
    async fn fill(&self) {
        let manager = ManagerStatus { raft_id: self.plan.raft_id, address: "x:1".into() };
        let own = Node { manager: Some(manager), ..node(self.plan.node, NodeRole::Manager) };
        let changes = vec![
            Change::CreateCluster(Box::new(self.plan.cluster.clone())),
            Change::CreateNode(Box::new(own)),
            Change::CreateNode(Box::new(node(WORKER, NodeRole::Worker))),
            Change::CreateNode(Box::new(node(FORMER, NodeRole::Worker))),
            Change::CreateNode(Box::new(node(REMOVED, NodeRole::Worker))),
            Change::RemoveNode(REMOVED),
        ];
        let atoms = vec![ChangeSet { author: Author::Api, changes }];
        let applied = self.part.store.propose(Proposal { time: wall_now(), atoms }).await.unwrap();
        assert_eq!(applied.results, vec![Ok(())]);
    }

    /// `None` where the caller cannot even ask for such a connection.
    fn connector(&self, caller: Caller, raft: bool) -> Option<Connector> {
        let own = self.plan.cluster.id.0;
        let of = |node: NodeId, role| issue(&self.root, node.0, own, role, wall_now());
        let tls = match caller {
            Caller::Nobody => {
                let pinned = pki::Pinned::new(self.root.digest()).unwrap();
                return (!raft).then(|| pinned.connector());
            }
            Caller::Worker => of(WORKER, pki::Role::Worker),
            Caller::Manager => Arc::clone(&self.tls),
            Caller::FormerManager => of(FORMER, pki::Role::Manager),
            Caller::RemovedManager => of(REMOVED, pki::Role::Manager),
            Caller::ExpiredManager => {
                let begun = wall_now() - base::Millis::from_secs(3 * 3_600);
                issue(&self.root, self.plan.node.0, own, pki::Role::Manager, begun)
            }
            Caller::Foreigner => {
                // It believes this cluster's root, so that it is the server who refuses.
                let key = NodeKey::generate().unwrap();
                let other = RootCa::generate(wall_now()).unwrap();
                let chain = chain(&other, &key, self.plan.node.0, own, wall_now());
                NodeTls::new(&key, &chain, &self.root.certificate_pem()).unwrap()
            }
            Caller::ServerOnly => self.purpose(rcgen::ExtendedKeyUsagePurpose::ServerAuth),
            Caller::CodeSigner => self.purpose(rcgen::ExtendedKeyUsagePurpose::CodeSigning),
        };
        self.shown(&tls, raft)
    }

    fn shown(&self, tls: &Arc<NodeTls>, raft: bool) -> Option<Connector> {
        let protocol: &[u8] = if raft { b"shoal-raft" } else { b"h2" };
        Some(pki::connector_for(tls, Expected::default(), protocol).unwrap())
    }

    /// A certificate of the manager that is like its own in all but its purpose.
    fn purpose(&self, purpose: rcgen::ExtendedKeyUsagePurpose) -> Arc<NodeTls> {
        use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
        let key = NodeKey::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let name = &mut params.distinguished_name;
        name.push(DnType::OrganizationName, self.plan.cluster.id.to_string());
        name.push(DnType::OrganizationalUnitName, MANAGER.unit());
        name.push(DnType::CommonName, self.plan.node.to_string());
        params.extended_key_usages = vec![purpose];
        let issuer = KeyPair::from_pem(self.root.key_pem()).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&self.root.certificate_pem(), issuer).unwrap();
        let own = KeyPair::from_pem(key.pem()).unwrap();
        let chain = params.signed_by(&own, &issuer).unwrap().pem();
        NodeTls::new(&key, &chain, &self.root.certificate_pem()).unwrap()
    }

    /// Calls with a message that says nothing, or for Raft with one that is meant for this member.
    async fn call(&self, connector: Connector, path: &str) -> Outcome {
        let channel = pki::channel(&self.address.to_string(), connector).unwrap();
        let mut client = tonic::client::Grpc::new(channel);
        if client.ready().await.is_err() {
            return Outcome::NoConnection;
        }
        let body = if path.contains(".Raft/") { self.route(path) } else { Bytes::new() };
        let request = tonic::Request::new(futures::stream::iter([body]));
        let path = http::uri::PathAndQuery::try_from(path).unwrap();
        let answer = client.streaming(request, path, Raw);
        let answer = tokio::time::timeout(Duration::from_secs(20), answer).await;
        match answer.expect("every call is answered") {
            Ok(_) => Outcome::Answered,
            Err(status) => outcome(&status),
        }
    }

    /// `Route { from, to }`, which is the first field of every message to Raft or of its head.
    fn route(&self, path: &str) -> Bytes {
        let (from, to) = (self.plan.raft_id, self.plan.raft_id);
        let mut route = vec![0x08];
        put_varint(&mut route, from);
        route.push(0x10);
        put_varint(&mut route, to);
        let field = |inner: Vec<u8>| [vec![0x0a, inner.len() as u8], inner].concat();
        let message = field(route);
        if path.ends_with("Snapshot") { field(message).into() } else { message.into() }
    }
}

const MANAGER: pki::Role = pki::Role::Manager;
const WORKER: NodeId = node_number(2);
const FORMER: NodeId = node_number(3);
const REMOVED: NodeId = node_number(4);

const fn node_number(number: u128) -> NodeId {
    NodeId(base::Id::from_u128(number).expect("is not zero"))
}

fn outcome(status: &Status) -> Outcome {
    use std::error::Error as _;
    match status.code() {
        // A status that the other side has sent has no cause on this one.
        _ if status.source().is_some() => Outcome::NoConnection,
        code @ (Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented) => {
            Outcome::Refused(code)
        }
        _ => Outcome::Answered,
    }
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn chain(
    root: &RootCa,
    key: &NodeKey,
    node: base::Id,
    cluster: base::Id,
    now: base::Timestamp,
) -> String {
    let subject = Subject { node, role: MANAGER, cluster };
    signed(root, key, &subject, now)
}

fn signed(root: &RootCa, key: &NodeKey, subject: &Subject, now: base::Timestamp) -> String {
    let expiry = base::Millis::from_secs(2 * 3_600);
    root.issue(&key.request().unwrap(), subject, expiry, now).unwrap().chain_pem
}

fn issue(
    root: &RootCa,
    node: base::Id,
    cluster: base::Id,
    role: pki::Role,
    now: base::Timestamp,
) -> Arc<NodeTls> {
    let key = NodeKey::generate().unwrap();
    let chain = signed(root, &key, &Subject { node, role, cluster }, now);
    NodeTls::new(&key, &chain, &root.certificate_pem()).unwrap()
}

fn node(id: NodeId, role: NodeRole) -> Node {
    Node {
        id,
        meta: types::Meta::default(),
        spec: NodeSpec { role, ..NodeSpec::default() },
        description: NodeDescription::default(),
        status: NodeStatus::default(),
        role,
        manager: None,
        number: 0,
        certificate_expires: base::Timestamp::ZERO,
    }
}

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn config(folder: &std::path::Path) -> Config {
    Config {
        data_dir: folder.into(),
        run_dir: folder.into(),
        hostname: "h".into(),
        log_level: "info".into(),
        log_format: cli::LogFormat::Text,
        labels: types::Labels::new(),
        insecure_registries: Vec::new(),
        cgroup_parent: "/shoal".into(),
        raft_timing: store::Timing::LAN,
        encryption: network::EncryptionMode::Auto,
        metrics_addr: None,
    }
}

/// Messages as bytes: what they say does not matter here.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

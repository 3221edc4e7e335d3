//! Managers in one process, over loopback, with real certificates and real disks.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{Id, Millis};
use futures::StreamExt;
use pki::{DataKey, NodeKey, NodeTls, Role, RootCa, Subject, accept_stream, wall_now};
use store::{ApplyHalt, Machine, MembershipError, Options, ProposeError, RaftStore, Tuning};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A map of texts: `key=value` sets, `halt` is not known.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Map {
    pub values: Arc<BTreeMap<String, String>>,
    pub index: u64,
}

impl Machine for Map {
    type Reply = u64;
    type View = Self;

    fn apply(&mut self, index: u64, payload: &[u8]) -> Result<u64, ApplyHalt> {
        let text = std::str::from_utf8(payload).unwrap();
        let Some((key, value)) = text.split_once('=') else {
            return Err(ApplyHalt { reason: format!("change {text:?} is not known") });
        };
        Arc::make_mut(&mut self.values).insert(key.to_owned(), value.to_owned());
        self.index = index;
        Ok(index)
    }

    fn view(&self) -> Self {
        self.clone()
    }

    fn encode_snapshot(
        view: &Self,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        sink(format!("{}\n", view.index).as_bytes())?;
        view.values.iter().try_for_each(|(key, value)| sink(format!("{key}={value}\n").as_bytes()))
    }

    fn restore(source: &mut dyn Read) -> io::Result<Self> {
        let mut text = String::new();
        source.read_to_string(&mut text)?;
        let mut lines = text.lines();
        let index = lines.next().unwrap().parse().unwrap();
        let pair = |line: &str| {
            let (key, value) = line.split_once('=').unwrap();
            (key.to_owned(), value.to_owned())
        };
        Ok(Self { values: Arc::new(lines.map(pair).collect()), index })
    }
}

pub struct Cluster {
    pub root: RootCa,
    pub tuning: Tuning,
}

pub struct Node {
    pub number: u64,
    pub addr: SocketAddr,
    pub dir: TempDir,
    pub tls: Arc<NodeTls>,
    pub running: Option<Running>,
}

pub struct Running {
    pub store: RaftStore<Map>,
    listener: JoinHandle<()>,
}

pub fn id(number: u64) -> Id {
    Id::from_u128(u128::from(number)).unwrap()
}

pub fn small_floor() -> Tuning {
    Tuning { proposal_timeout: Millis::from_secs(10), free_bytes_floor: 1, ..Tuning::default() }
}

impl Cluster {
    pub fn new(tuning: Tuning) -> Self {
        Self { root: RootCa::generate(wall_now()).unwrap(), tuning }
    }

    pub fn tls(&self, number: u64, role: Role) -> Arc<NodeTls> {
        let key = NodeKey::generate().unwrap();
        let subject = Subject { node: id(number), role, cluster: id(999) };
        let expiry = Millis::from_secs(7_200);
        let issued = self.root.issue(&key.request().unwrap(), &subject, expiry, wall_now());
        NodeTls::new(&key, &issued.unwrap().chain_pem, &self.root.certificate_pem()).unwrap()
    }

    /// A manager that runs and belongs to no cluster yet.
    pub async fn node(&self, number: u64) -> Node {
        let dir = tempfile::tempdir().unwrap();
        self.node_in(number, dir).await
    }

    pub async fn node_in(&self, number: u64, dir: TempDir) -> Node {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = probe.local_addr().unwrap();
        drop(probe);
        let tls = self.tls(number, Role::Manager);
        let mut node = Node { number, addr, dir, tls, running: None };
        node.start(self).await;
        node
    }

    /// The first bootstraps, the others join it.
    pub async fn managers(&self, count: u64) -> Vec<Node> {
        let first = self.node(1).await;
        first.store().bootstrap().await.unwrap();
        let mut nodes = vec![first];
        for number in 2..=count {
            let node = self.node(number).await;
            join(&nodes, &node).await;
            nodes.push(node);
        }
        nodes
    }

    pub fn options(
        &self,
        number: u64,
        addr: SocketAddr,
        dir: &Path,
        tls: Arc<NodeTls>,
    ) -> Options<Map> {
        Options {
            dir: dir.to_owned(),
            key: DataKey::from_bytes([number as u8; 32]),
            raft_id: number,
            node: id(number),
            address: addr.to_string(),
            tls,
            machine: Map::default(),
            on_apply: Box::new(|_| {}),
            tuning: self.tuning,
        }
    }
}

impl Node {
    pub fn store(&self) -> &RaftStore<Map> {
        &self.running.as_ref().unwrap().store
    }

    pub async fn start(&mut self, cluster: &Cluster) {
        let options =
            cluster.options(self.number, self.addr, self.dir.path(), Arc::clone(&self.tls));
        let store = RaftStore::open(options).await.unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.addr).unwrap();
        let listener: TcpListener = socket.listen(128).unwrap();
        let mut incoming = accept_stream(listener, &self.tls).unwrap().divert(store.divert());
        let listener =
            tokio::spawn(async move { while let Some(Ok(_)) = incoming.next().await {} });
        self.running = Some(Running { store, listener });
    }

    /// Ends it as a kill would, as far as one process can: nothing is said to the others.
    pub async fn kill(&mut self) {
        if let Some(Running { store, listener }) = self.running.take() {
            listener.abort();
            store.shutdown().await;
        }
    }
}

/// The node that leads with a majority behind it.
pub async fn leader(nodes: &[Node]) -> usize {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        for (position, node) in nodes.iter().enumerate() {
            let leads = |running: &Running| running.store.leadership().borrow().ready;
            if node.running.as_ref().is_some_and(leads) {
                return position;
            }
        }
        assert!(Instant::now() < deadline, "no leader");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Proposes to whoever leads until it is stored.
pub async fn propose(nodes: &[Node], text: &str) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let position = leader(nodes).await;
        match nodes[position].store().propose(text.as_bytes().to_vec()).await {
            Ok(index) => return index,
            Err(ProposeError::NotLeader { .. } | ProposeError::NoQuorum) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "not stored");
    }
}

pub async fn join(nodes: &[Node], node: &Node) {
    let position = leader(nodes).await;
    let store = nodes[position].store();
    store.add_learner(node.number, id(node.number), &node.addr.to_string()).await.unwrap();
    store.promote(node.number).await.unwrap();
}

pub async fn remove(nodes: &[Node], number: u64) -> Result<(), MembershipError> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let position = leader(nodes).await;
        match nodes[position].store().remove(number).await {
            Err(MembershipError::NotLeader { .. }) => {}
            outcome => return outcome,
        }
        assert!(Instant::now() < deadline, "not removed");
    }
}

pub async fn wait(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn value(node: &Node, key: &str) -> Option<String> {
    node.store().view().values.get(key).cloned()
}

//! Connecting running tasks to further networks, as their nodes ask.
//!
//! Owns: whose tasks a node may ask for, the tries when somebody else was quicker, and the answers.
//! Does not know: what a node does with it; which addresses are free.
//! Invariant: a node changes nothing but its own tasks.

use std::net::IpAddr;

use allocator::{Connecting, connect};
use ports::Clock;
use ports::store::Store;
use state::{Author, Change, ChangeSet, Proposal, Refusal, Snapshot};
use types::{
    Attachment, Connection, ErrorCode, Fault, NetworkDriver, NetworkId, NodeId, Task, TaskId,
};
use wire::v1;

use crate::api::find;
use crate::forward::{fault_of_proposal, not_leader};

/// Another took the same address meanwhile, or the network became larger first.
const TRIES_MAX: u32 = 8;

/// The part of the dispatcher's service that is about connections.
pub(crate) struct Connections<'a, S, C> {
    pub(crate) store: &'a S,
    pub(crate) clock: &'a C,
    /// Who asks.
    pub(crate) node: NodeId,
}

impl<S: Store, C: Clock> Connections<'_, S, C> {
    /// A network by what a user types on the node.
    pub(crate) async fn find(
        &self,
        request: &v1::FindNetworkRequest,
    ) -> Result<v1::FoundNetwork, Fault> {
        self.check_leads()?;
        let view = self.store.snapshot();
        let network = find::network(&view, &request.r#ref)?;
        Ok(v1::FoundNetwork {
            id: wire::bytes_of(network.id.0),
            name: network.spec.name.clone(),
            attachable: network.spec.attachable,
        })
    }

    pub(crate) async fn connect(
        &self,
        request: v1::ConnectTaskRequest,
    ) -> Result<v1::ConnectTaskResponse, Fault> {
        self.check_leads()?;
        let wish = Wish::of(request)?;
        for _ in 0..TRIES_MAX {
            let view = self.store.snapshot();
            let (atom, answer) = plan(&view, self.clock.now(), self.node, &wish)?;
            match self.propose(atom).await? {
                Ok(()) => {
                    if let Some(answer) = answer {
                        return Ok(answer);
                    }
                }
                // Who asked for this very address is told that it is taken, by the next try.
                Err(Refusal::Taken { .. }) => {}
                Err(refusal) => return Err(refusal.to_fault()),
            }
        }
        let message = "others take the addresses of the network as fast as they are chosen";
        Err(Fault::new(ErrorCode::Unavailable, message))
    }

    pub(crate) async fn disconnect(
        &self,
        request: &v1::DisconnectTaskRequest,
    ) -> Result<v1::Empty, Fault> {
        self.check_leads()?;
        let (task, network) =
            (identity(&request.task, "task")?, identity(&request.network, "network")?);
        let (task, network) = (TaskId(task), NetworkId(network));
        let view = self.store.snapshot();
        let known = own_task(&view, self.node, task)?;
        let given = known.network.as_deref();
        if given.and_then(|given| given.connection(network)).is_none() {
            let message = format!("task {task} is not connected to network {network}");
            return Err(Fault::new(ErrorCode::NotFound, message));
        }
        let change = Change::DisconnectTask { task, network };
        match self.propose(ChangeSet::one(Author::Allocator, change)).await? {
            Ok(()) => Ok(v1::Empty {}),
            Err(refusal) => Err(refusal.to_fault()),
        }
    }

    fn check_leads(&self) -> Result<(), Fault> {
        let leadership = self.store.leadership().borrow().clone();
        match leadership.is_leader {
            true => Ok(()),
            false => Err(not_leader(leadership.leader.map(|(_, address)| address).as_deref())),
        }
    }

    async fn propose(&self, atom: ChangeSet) -> Result<Result<(), Refusal>, Fault> {
        let proposal = Proposal { time: self.clock.now(), atoms: vec![atom] };
        let applied = self.store.propose(proposal).await;
        let applied = applied.map_err(|error| fault_of_proposal(&error))?;
        Ok(applied.results.into_iter().next().unwrap_or(Ok(())))
    }
}

fn identity(bytes: &[u8], field: &str) -> Result<base::Id, Fault> {
    base::Id::from_bytes(bytes).ok_or_else(|| Fault::invalid(field, "is not an identity"))
}

/// What a node asks for.
#[derive(Clone, Debug)]
struct Wish {
    task: TaskId,
    network: String,
    addresses: Vec<IpAddr>,
    aliases: Vec<String>,
}

impl Wish {
    fn of(request: v1::ConnectTaskRequest) -> Result<Self, Fault> {
        let task = TaskId(identity(&request.task, "task")?);
        let addresses = match request.wanted {
            Some(wanted) => {
                // Which network it is, the text says.
                let network = wire::bytes_of(NetworkId::MIN.0);
                let wanted: Attachment = v1::Attachment { network, ..wanted }.try_into()?;
                wanted.addresses().collect()
            }
            None => Vec::new(),
        };
        types::check_aliases("--alias", &request.aliases)?;
        Ok(Self { task, network: request.network, addresses, aliases: request.aliases })
    }
}

fn own_task(view: &Snapshot, node: NodeId, task: TaskId) -> Result<&Task, Fault> {
    match view.task(task) {
        Some(found) if found.node == Some(node) => Ok(found),
        // Others' tasks are none of its business, not even whether they exist.
        Some(_) | None => {
            let message = format!("Permission denied: task {task} is not one of node {node}");
            Err(Fault::new(ErrorCode::PermissionDenied, message))
        }
    }
}

/// The next change, and the answer that it makes true; `None`: ask again after it.
fn plan(
    view: &Snapshot,
    now: base::Timestamp,
    node: NodeId,
    wish: &Wish,
) -> Result<(ChangeSet, Option<v1::ConnectTaskResponse>), Fault> {
    let task = own_task(view, node, wish.task)?;
    let network = find::network(view, &wish.network)?;
    let name = &network.spec.name;
    if !network.spec.attachable || network.spec.driver != NetworkDriver::Overlay {
        let message = format!("network {name} not manually attachable");
        return Err(
            Fault::new(ErrorCode::PermissionDenied, message).hint("make it with --attachable")
        );
    }
    match connect(view, now, network, &wish.addresses)? {
        Connecting::After(atom) => Ok((atom, None)),
        Connecting::With(attachment) => {
            let answer = v1::ConnectTaskResponse {
                attachment: Some((&attachment).into()),
                network_name: name.clone(),
            };
            let connection = Box::new(Connection { attachment, aliases: wish.aliases.clone() });
            let change = Change::ConnectTask { task: task.id, connection };
            Ok((ChangeSet::one(Author::Allocator, change), Some(answer)))
        }
    }
}

#[cfg(test)]
mod tests {
    use state::Stamp;
    use testkit::{apply, fixture, node_id};
    use types::{NetworkSpec, Subnet, TaskState};

    use super::*;

    fn network(view: &mut Snapshot, number: u8, attachable: bool) {
        let id = NetworkId(base::Id::from_u128(900 + u128::from(number)).unwrap());
        let name = format!("net{number}");
        let spec = NetworkSpec { name, attachable, ipv4: true, ..NetworkSpec::default() };
        apply(view, Author::Api, Change::CreateNetwork { id, spec: spec.into() });
        let net = format!("10.{number}.0.0/29").parse().unwrap();
        let subnets = vec![Subnet::new(net, None, None)];
        let vni = 5_000 + u32::from(number);
        apply(view, Author::Allocator, Change::AllocateNetwork { id, vni, mtu: 1_450, subnets });
    }

    #[test]
    fn a_node_connects_its_own_tasks_to_attachable_networks_only() {
        let fixture = fixture(
            "now 12:00:00
             node a ready
             node b ready
             service web replicas=2
             task web.1 @a running
             task web.2 @b running",
        );
        let (mut view, now) = (fixture.view, fixture.now);
        network(&mut view, 1, true);
        network(&mut view, 2, false);
        let of = |view: &Snapshot, node| view.tasks_on_node(node_id(node)).next().unwrap().id;
        let (own, other) = (of(&view, "a"), of(&view, "b"));
        let wish = |task, network: &str, addresses: &[&str]| Wish {
            task,
            network: network.into(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            aliases: vec!["db".into()],
        };
        for (wish, code, part) in [
            (wish(other, "net1", &[]), ErrorCode::PermissionDenied, "is not one of node"),
            (wish(TaskId::MAX, "net1", &[]), ErrorCode::PermissionDenied, "is not one of node"),
            (wish(own, "net2", &[]), ErrorCode::PermissionDenied, "not manually attachable"),
            (wish(own, "net3", &[]), ErrorCode::NotFound, "network net3 not found"),
            (wish(own, "net1", &["10.9.0.2"]), ErrorCode::Invalid, "is no address"),
        ] {
            let fault = plan(&view, now, node_id("a"), &wish).unwrap_err();
            assert_eq!(fault.code, code, "{fault}");
            assert!(fault.message.contains(part), "{fault}");
        }
        let good = wish(own, "NET1", &["10.1.0.3"]);
        let (atom, answer) = plan(&view, now, node_id("a"), &good).unwrap();
        assert_eq!(answer.unwrap().network_name, "net1");
        let stamp = Stamp { index: view.index() + 1, time: view.time() };
        view.apply(stamp, &atom, &mut Vec::new()).unwrap();
        let task = view.task(own).unwrap();
        assert_eq!(task.status.state, TaskState::Running);
        let given = task.network.as_deref().unwrap();
        assert_eq!(given.connected[0].aliases, ["db"]);
        assert_eq!(given.all().count(), 1);
    }
}

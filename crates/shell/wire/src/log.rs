//! What stands in the managers' log and snapshots.
//!
//! Owns: proposals and snapshots as bytes, and the refusal of what this version does not know.
//! Does not know: files, encryption, Raft.
//! Invariant: what is decoded, encoded again, is as long as it was: a field that this version does
//! not know is met with an error, never skipped.

mod network;

use std::net::IpAddr;
use std::sync::Arc;

use base::Timestamp;
use bytes::Bytes;
use prost::Message;
use state::{Author, Change, ChangeSet, Proposal, Resting, Restore, Snapshot};
use types::{ErrorCode, Fault, NodeId, PortProtocol, SlotKey, TaskId};

use crate::store_v1 as form;
use crate::store_v1::change::Change as Form;
use crate::store_v1::resting::What;
use crate::store_v1::snapshot_record::Record;
use crate::{bytes_of, id as identity, v1};

/// Format of proposals and snapshots that this version writes, and the highest that it reads.
pub const FORMAT: u32 = 1;
/// Bytes of one record of a snapshot at most: a service of the largest spec, twice.
pub const RECORD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What is stored cannot be read by this version.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// Damaged, or not ours.
    #[error("stored message cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    /// Written by a newer version: run that one.
    #[error("stored format is {found}, this version reads up to {FORMAT}")]
    Format { found: u32 },
    /// Written by a newer version: run that one.
    #[error("stored message has fields that this version does not know")]
    Unknown,
    #[error("stored message is not valid: {0}")]
    Invalid(#[from] Fault),
    #[error("snapshot is damaged: {0}")]
    Snapshot(#[from] state::RestoreError),
    #[error("snapshot ends early or is cut off")]
    Cut,
    #[error("reading the snapshot")]
    Read(#[source] std::io::Error),
}

/// Decodes a message of which this version must know every field.
fn decode_exact<M: Message + Default>(bytes: &[u8]) -> Result<M, StoredError> {
    let message = M::decode(bytes)?;
    if message.encoded_len() != bytes.len() {
        return Err(StoredError::Unknown);
    }
    Ok(message)
}

fn stored_fault(problem: &str) -> Fault {
    Fault::new(ErrorCode::Internal, problem)
}

/// A part that must be there.
fn needed<F, T: TryFrom<F, Error = Fault>>(form: Option<F>, field: &str) -> Result<T, Fault> {
    form.ok_or_else(|| Fault::invalid(field, "is missing"))?.try_into()
}

/// The same, of a part that converts without a check.
fn needed_plain<F, T: From<F>>(form: Option<F>, field: &str) -> Result<T, Fault> {
    form.map(T::from).ok_or_else(|| Fault::invalid(field, "is missing"))
}

/// The bytes of a proposal.
#[must_use]
pub fn encode_proposal(proposal: &Proposal) -> Vec<u8> {
    let atom = |atom: &ChangeSet| form::ChangeSet {
        changes: atom.changes.iter().map(change_to_wire).collect(),
        author: atom.author as u32,
    };
    let message = form::Proposal {
        format: FORMAT,
        time: proposal.time.0,
        atoms: proposal.atoms.iter().map(atom).collect(),
        raise_format_level: 0,
    };
    message.encode_to_vec()
}

/// A proposal from its bytes; an error means that this manager must stop.
pub fn decode_proposal(bytes: &[u8]) -> Result<Proposal, StoredError> {
    let message: form::Proposal = decode_exact(bytes)?;
    if message.format != FORMAT {
        return Err(StoredError::Format { found: message.format });
    }
    if message.raise_format_level > types::limits::FORMAT_LEVEL {
        return Err(StoredError::Format { found: message.raise_format_level });
    }
    let atom = |atom: form::ChangeSet| -> Result<ChangeSet, Fault> {
        let author = Author::from_number(atom.author).ok_or(stored_fault("is unknown"))?;
        let changes = atom.changes.into_iter().map(change_from_wire).collect::<Result<_, _>>()?;
        Ok(ChangeSet { author, changes })
    };
    let atoms = message.atoms.into_iter().map(atom).collect::<Result<_, _>>()?;
    Ok(Proposal { time: Timestamp(message.time), atoms })
}

fn pack_tasks(ids: impl Iterator<Item = TaskId>) -> Bytes {
    ids.flat_map(TaskId::to_bytes).collect::<Vec<u8>>().into()
}

fn unpack<T>(packed: &[u8], one: fn(&[u8]) -> Option<T>) -> Result<Vec<T>, Fault> {
    let chunks = packed.chunks_exact(16);
    if !chunks.remainder().is_empty() {
        return Err(stored_fault("is not a list of ids"));
    }
    chunks.map(|id| one(id).ok_or(stored_fault("holds a bad id"))).collect()
}

fn change_to_wire(change: &Change) -> form::Change {
    let form = match change {
        Change::CreateCluster(cluster) => Form::CreateCluster((&**cluster).into()),
        Change::UpdateCluster { expect, spec } => Form::UpdateCluster(form::UpdateClusterSpec {
            expect: *expect,
            spec: Some((&**spec).into()),
        }),
        Change::RotateNetworkKey { expect } => Form::RotateNetworkKey(*expect),
        Change::AddAddressPools(pools) => {
            Form::AddAddressPools(form::AddressPools { pools: pools.clone() })
        }
        Change::SetJoinTokens { worker, manager } => Form::SetJoinTokens(form::SetJoinTokens {
            worker: worker.clone(),
            manager: manager.clone(),
        }),
        Change::CreateNode(node) => Form::CreateNode((&**node).into()),
        Change::UpdateNode { id, expect, spec } => Form::UpdateNode(form::UpdateNodeSpec {
            id: bytes_of(id.0),
            expect: *expect,
            spec: Some(spec.into()),
        }),
        Change::DescribeNode { id, description } => {
            let description = Some((&**description).into());
            Form::DescribeNode(form::SetNodeDescription { id: bytes_of(id.0), description })
        }
        Change::SetNodeStatus { id, status } => Form::SetNodeStatus(form::SetNodeStatus {
            id: bytes_of(id.0),
            status: Some(status.into()),
        }),
        Change::SetNodeRole { id, role } => {
            Form::SetNodeRole(form::SetNodeRole { id: bytes_of(id.0), role: *role as i32 })
        }
        Change::SetNodeManager { id, manager } => Form::SetNodeManager(form::SetNodeManager {
            id: bytes_of(id.0),
            manager: manager.as_ref().map(Into::into),
        }),
        Change::SetNodeNumber { id, number } => {
            Form::SetNodeNumber(form::SetNodeNumber { id: bytes_of(id.0), number: *number })
        }
        Change::SetNodeCertificate { id, expires } => {
            let expires_at = expires.0;
            Form::SetNodeCertificate(form::SetNodeCertificate { id: bytes_of(id.0), expires_at })
        }
        Change::RemoveNode(id) => Form::RemoveNode(bytes_of(id.0)),
        other => service_change_to_wire(other),
    };
    form::Change { change: Some(form) }
}

fn service_change_to_wire(change: &Change) -> Form {
    match change {
        Change::CreateService { id, spec } => Form::CreateService(form::CreateService {
            id: bytes_of(id.0),
            spec: Some((&**spec).into()),
        }),
        Change::UpdateService { id, expect, spec } => Form::UpdateService(form::UpdateService {
            id: bytes_of(id.0),
            expect: *expect,
            spec: Some((&**spec).into()),
        }),
        Change::RemoveService(id) => Form::RemoveService(bytes_of(id.0)),
        Change::SetUpdateStatus { id, status } => Form::SetUpdateStatus(form::SetUpdateStatus {
            id: bytes_of(id.0),
            status: status.as_ref().map(Into::into),
        }),
        Change::SetReason { service, decider, reason } => Form::SetReason(form::SetReason {
            service: bytes_of(service.0),
            decider: decider.clone(),
            reason: reason.as_ref().map(Into::into),
        }),
        Change::CreateTasks { service, revision, seed, desired, slots, nodes } => {
            let range = |(first, last): &(u32, u32)| form::SlotRange { first: *first, last: *last };
            Form::CreateTasks(form::CreateTasks {
                service: bytes_of(service.0),
                revision: *revision,
                seed: Bytes::copy_from_slice(&seed.to_be_bytes()),
                desired: *desired as i32,
                slots: slots.iter().map(range).collect(),
                nodes: nodes.iter().map(|node| bytes_of(node.0)).collect(),
            })
        }
        other => task_change_to_wire(other),
    }
}

fn task_change_to_wire(change: &Change) -> Form {
    match change {
        Change::AdmitTasks(ids) => {
            Form::AdmitTasks(form::Tasks { ids: pack_tasks(ids.iter().copied()) })
        }
        Change::RemoveTasks(ids) => {
            Form::RemoveTasks(form::Tasks { ids: pack_tasks(ids.iter().copied()) })
        }
        Change::AssignTasks(pairs) => Form::AssignTasks(form::AssignTasks {
            tasks: pack_tasks(pairs.iter().map(|(task, _)| *task)),
            nodes: pairs.iter().flat_map(|(_, node)| node.to_bytes()).collect::<Vec<u8>>().into(),
        }),
        Change::DesireTasks { desired, tasks } => Form::DesireTasks(form::DesireTasks {
            desired: *desired as i32,
            ids: pack_tasks(tasks.iter().copied()),
        }),
        Change::ReportTasks(reports) => {
            let report = |(id, status): &(TaskId, types::TaskStatus)| form::ReportTask {
                id: bytes_of(id.0),
                status: Some(status.into()),
            };
            Form::ReportTasks(form::ReportTasks { reports: reports.iter().map(report).collect() })
        }
        Change::SetTally { service, slot, tally } => {
            Form::SetTally(tally_to_wire(*service, *slot, tally.as_ref()))
        }
        other => network::change_to_wire(other),
    }
}

fn tally_to_wire(
    service: types::ServiceId,
    slot: SlotKey,
    tally: Option<&types::Tally>,
) -> form::SetTally {
    let (slot, node) = match slot {
        SlotKey::Replica(number) => (number, Bytes::new()),
        SlotKey::Node(node) => (0, bytes_of(node.0)),
    };
    let tally = tally.map(|tally| form::Tally {
        revision: tally.revision,
        attempts: tally.attempts,
        times: tally.times.iter().map(|at| at.0).collect(),
        resume_at: tally.resume_at.0,
    });
    form::SetTally { service: bytes_of(service.0), slot, node, tally }
}

type TallyParts = (types::ServiceId, SlotKey, Option<types::Tally>);

fn tally_from_wire(form: form::SetTally) -> Result<TallyParts, Fault> {
    let slot = match form.slot {
        0 => SlotKey::Node(identity(&form.node, "node")?),
        number => SlotKey::Replica(number),
    };
    let tally = form.tally.map(|tally| types::Tally {
        revision: tally.revision,
        attempts: tally.attempts,
        times: tally.times.into_iter().map(Timestamp).collect(),
        resume_at: Timestamp(tally.resume_at),
    });
    Ok((identity(&form.service, "service")?, slot, tally))
}

fn change_from_wire(form: form::Change) -> Result<Change, Fault> {
    let form = form.change.ok_or(stored_fault("is a change that this version does not know"))?;
    Ok(match form {
        Form::CreateCluster(cluster) => Change::CreateCluster(Box::new(cluster.try_into()?)),
        Form::UpdateCluster(f) => Change::UpdateCluster {
            expect: f.expect,
            spec: Box::new(needed_plain(f.spec, "spec")?),
        },
        Form::AddAddressPools(f) => Change::AddAddressPools(f.pools),
        Form::RotateNetworkKey(expect) => Change::RotateNetworkKey { expect },
        Form::SetJoinTokens(f) => Change::SetJoinTokens { worker: f.worker, manager: f.manager },
        Form::CreateNode(node) => Change::CreateNode(Box::new(node.try_into()?)),
        Form::UpdateNode(f) => Change::UpdateNode {
            id: identity(&f.id, "id")?,
            expect: f.expect,
            spec: needed(f.spec, "spec")?,
        },
        Form::DescribeNode(f) => Change::DescribeNode {
            id: identity(&f.id, "id")?,
            description: Box::new(needed_plain(f.description, "description")?),
        },
        Form::SetNodeStatus(f) => Change::SetNodeStatus {
            id: identity(&f.id, "id")?,
            status: needed(f.status, "status")?,
        },
        Form::SetNodeRole(f) => Change::SetNodeRole {
            id: identity(&f.id, "id")?,
            role: crate::convert::role(f.role, "role")?,
        },
        Form::SetNodeManager(f) => Change::SetNodeManager {
            id: identity(&f.id, "id")?,
            manager: f.manager.map(Into::into),
        },
        Form::SetNodeNumber(f) => {
            Change::SetNodeNumber { id: identity(&f.id, "id")?, number: f.number }
        }
        Form::SetNodeCertificate(f) => Change::SetNodeCertificate {
            id: identity(&f.id, "id")?,
            expires: Timestamp(f.expires_at),
        },
        Form::RemoveNode(id) => Change::RemoveNode(identity(&id, "id")?),
        other => service_change_from_wire(other)?,
    })
}

fn service_change_from_wire(form: Form) -> Result<Change, Fault> {
    Ok(match form {
        Form::CreateService(f) => Change::CreateService {
            id: identity(&f.id, "id")?,
            spec: Arc::new(needed(f.spec, "spec")?),
        },
        Form::UpdateService(f) => Change::UpdateService {
            id: identity(&f.id, "id")?,
            expect: f.expect,
            spec: Arc::new(needed(f.spec, "spec")?),
        },
        Form::RemoveService(id) => Change::RemoveService(identity(&id, "id")?),
        Form::SetUpdateStatus(f) => Change::SetUpdateStatus {
            id: identity(&f.id, "id")?,
            status: f.status.map(TryInto::try_into).transpose()?,
        },
        Form::SetReason(f) => Change::SetReason {
            service: identity(&f.service, "service")?,
            decider: f.decider,
            reason: f.reason.map(Into::into),
        },
        Form::CreateTasks(f) => {
            let seed = <[u8; 16]>::try_from(f.seed.as_ref());
            Change::CreateTasks {
                service: identity(&f.service, "service")?,
                revision: f.revision,
                seed: u128::from_be_bytes(seed.map_err(|_| stored_fault("seed is not 16 bytes"))?),
                desired: crate::convert::state(f.desired, "desired")?,
                slots: f.slots.into_iter().map(|range| (range.first, range.last)).collect(),
                nodes: f
                    .nodes
                    .into_iter()
                    .map(|node| identity(&node, "nodes"))
                    .collect::<Result<_, _>>()?,
            }
        }
        other => task_change_from_wire(other)?,
    })
}

fn task_change_from_wire(form: Form) -> Result<Change, Fault> {
    Ok(match form {
        Form::AdmitTasks(f) => Change::AdmitTasks(unpack(&f.ids, TaskId::from_bytes)?),
        Form::RemoveTasks(f) => Change::RemoveTasks(unpack(&f.ids, TaskId::from_bytes)?),
        Form::AssignTasks(f) => {
            let tasks = unpack(&f.tasks, TaskId::from_bytes)?;
            let nodes = unpack(&f.nodes, NodeId::from_bytes)?;
            if tasks.len() != nodes.len() {
                return Err(stored_fault("has tasks without nodes"));
            }
            Change::AssignTasks(tasks.into_iter().zip(nodes).collect())
        }
        Form::DesireTasks(f) => Change::DesireTasks {
            desired: crate::convert::state(f.desired, "desired")?,
            tasks: unpack(&f.ids, TaskId::from_bytes)?,
        },
        Form::ReportTasks(f) => {
            let report = |r: form::ReportTask| -> Result<_, Fault> {
                Ok((identity(&r.id, "id")?, needed(r.status, "status")?))
            };
            Change::ReportTasks(f.reports.into_iter().map(report).collect::<Result<_, _>>()?)
        }
        Form::SetTally(f) => {
            let (service, slot, tally) = tally_from_wire(f)?;
            Change::SetTally { service, slot, tally }
        }
        other => network::change_from_wire(other)?,
    })
}

fn resting_to_wire(what: Resting, until: Timestamp) -> form::Resting {
    let what = match what {
        Resting::Address(network, address) => {
            let address = match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            let network = bytes_of(network.0);
            What::Address(form::RestingAddress { network, address: address.into() })
        }
        Resting::Port(protocol, port) => {
            What::Port(form::RestingPort { protocol: protocol as u32, port: port.into() })
        }
        Resting::Vni(vni) => What::Vni(vni),
    };
    form::Resting { until: until.0, what: Some(what) }
}

fn resting_from_wire(form: &form::Resting) -> Result<(Resting, Timestamp), Fault> {
    let bad = || stored_fault("rests without being anything");
    let what = match form.what.as_ref().ok_or_else(bad)? {
        What::Address(f) => {
            let v4 = <[u8; 4]>::try_from(&*f.address).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(&*f.address).map(IpAddr::from));
            Resting::Address(identity(&f.network, "network")?, address.map_err(|_| bad())?)
        }
        What::Port(f) => {
            let protocol = i32::try_from(f.protocol).ok().and_then(PortProtocol::from_number);
            let port = u16::try_from(f.port).map_err(|_| bad())?;
            Resting::Port(protocol.ok_or_else(bad)?, port)
        }
        What::Vni(vni) => Resting::Vni(*vni),
    };
    Ok((what, Timestamp(form.until)))
}

/// Gives a snapshot to `sink`, record by record: a length (4 bytes, little-endian) and the record.
pub fn encode_snapshot<E>(
    view: &Snapshot,
    mut sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let (mut buffer, mut count) = (Vec::new(), 0_u64);
    let mut put = |record: Record| -> Result<u64, E> {
        let message = form::SnapshotRecord { record: Some(record) };
        buffer.clear();
        buffer.extend_from_slice(&(message.encoded_len() as u32).to_le_bytes());
        message.encode_raw(&mut buffer);
        count += 1;
        sink(&buffer).map(|()| count)
    };
    let (index, time) = (view.index(), view.time().0);
    let mut records = put(Record::Head(form::SnapshotHead { format: FORMAT, index, time }))?;
    if let Some(cluster) = view.cluster() {
        records = put(Record::Cluster((&**cluster).into()))?;
    }
    for node in view.nodes() {
        records = put(Record::Node((&**node).into()))?;
    }
    for (id, until) in view.removed_nodes() {
        records =
            put(Record::RemovedNode(form::RemovedNode { id: bytes_of(id.0), until: until.0 }))?;
    }
    for network in view.networks() {
        records = put(Record::Network((&**network).into()))?;
    }
    for (what, until) in view.resting() {
        records = put(Record::Resting(resting_to_wire(what, until)))?;
    }
    for service in view.services() {
        let service: v1::Service = (&**service).into();
        records = put(Record::Service(form::ServiceRecord { service: Some(service) }))?;
    }
    for revision in view.revisions() {
        records = put(Record::Revision(form::RevisionRecord {
            service: bytes_of(revision.service.0),
            revision: revision.number,
            spec: Some((&*revision.spec).into()),
            host_ports: revision.host_ports.iter().map(Into::into).collect(),
            mesh: revision.mesh,
        }))?;
    }
    for task in view.tasks() {
        let task: v1::Task = (&**task).into();
        records = put(Record::Task(form::TaskRecord { task: Some(task) }))?;
    }
    for (service, slot, tally) in view.tallies() {
        records = put(Record::Tally(tally_to_wire(service, slot, Some(tally))))?;
    }
    put(Record::End(form::SnapshotEnd { records }))?;
    Ok(())
}

/// Reads what `encode_snapshot` gave.
pub fn decode_snapshot(source: &mut dyn std::io::Read) -> Result<Snapshot, StoredError> {
    let (mut restore, mut count, mut buffer) = (None, 0_u64, Vec::new());
    loop {
        let mut length = [0; 4];
        source.read_exact(&mut length).map_err(StoredError::Read)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > RECORD_BYTES_MAX {
            return Err(StoredError::Cut);
        }
        buffer.resize(length, 0);
        source.read_exact(&mut buffer).map_err(StoredError::Read)?;
        let message: form::SnapshotRecord = decode_exact(&buffer)?;
        let record = message.record.ok_or(StoredError::Unknown)?;
        match (record, restore.as_mut()) {
            (Record::Head(head), None) if head.format == FORMAT => {
                restore = Some(Restore::new(head.index, Timestamp(head.time)));
            }
            (Record::Head(head), _) => return Err(StoredError::Format { found: head.format }),
            (Record::End(end), Some(_)) if end.records == count => break,
            (Record::End(_), _) | (_, None) => return Err(StoredError::Cut),
            (record, Some(restore)) => restore_record(restore, record)?,
        }
        count += 1;
    }
    Ok(restore.ok_or(StoredError::Cut)?.finish()?)
}

fn restore_record(restore: &mut Restore, record: Record) -> Result<(), StoredError> {
    match record {
        Record::Cluster(cluster) => restore.cluster(cluster.try_into()?),
        Record::Node(node) => restore.node(node.try_into()?),
        Record::RemovedNode(f) => restore.removed(identity(&f.id, "id")?, Timestamp(f.until)),
        Record::Service(f) => restore.service(needed(f.service, "service")?),
        Record::Revision(f) => {
            let spec: types::TaskSpec = needed(f.spec, "spec")?;
            let service = identity(&f.service, "service")?;
            let ports = f.host_ports.into_iter().map(TryInto::try_into);
            let ports = ports.collect::<Result<Vec<types::PortSpec>, Fault>>()?;
            let revision = types::Revision::new(service, f.revision, Arc::new(spec));
            restore.revision(revision.publishing(ports, f.mesh));
        }
        Record::Network(network) => restore.network(network.try_into()?),
        Record::Resting(f) => {
            let (what, until) = resting_from_wire(&f)?;
            restore.resting(what, until);
        }
        Record::Task(f) => restore.task(needed(f.task, "task")?),
        Record::Tally(f) => {
            let (service, slot, tally) = tally_from_wire(f)?;
            restore.tally(service, slot, tally.ok_or(StoredError::Unknown)?);
        }
        Record::Head(_) | Record::End(_) => return Err(StoredError::Cut),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use testkit::{fixture, node_id, service_id};

    use super::*;

    fn view() -> Snapshot {
        fixture(
            "now 12:00:00
             node a ready label.zone=x
             service web replicas=3 constraint=node.labels.zone==x
             service all global
             change web image=other
             tally web.1 attempts=3 resume=12:00:05
             task web.1 @a running rev=old
             task web.2 pending
             task all.a @a failed exit=3",
        )
        .view
    }

    #[test]
    fn a_snapshot_comes_back_whole() {
        let (view, mut bytes) = (view(), Vec::new());
        encode_snapshot(&view, |record| {
            bytes.extend_from_slice(record);
            Ok::<(), ()>(())
        })
        .unwrap();
        assert_eq!(decode_snapshot(&mut bytes.as_slice()).unwrap(), view);
        for cut in [0, 3, 10, bytes.len() / 2, bytes.len() - 1] {
            assert!(decode_snapshot(&mut &bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    fn network_changes(service: types::ServiceId, task: TaskId) -> Vec<Change> {
        let network = types::NetworkId(base::Id::from_u128(77).unwrap());
        let v4 = Some(std::net::Ipv4Addr::new(10, 1, 0, 5));
        let v6 = Some(std::net::Ipv6Addr::LOCALHOST);
        let (net, range) = ("10.1.0.0/16".parse().unwrap(), "10.1.4.0/24".parse().ok());
        let subnet = types::Subnet { cursor: 9, ..types::Subnet::new(net, range, None) };
        let gateway = v4.map(Into::into);
        let pool =
            types::IpamPool { subnet: Some(net), range, gateway, ..types::IpamPool::default() };
        let spec = types::NetworkSpec {
            name: "back".into(),
            attachable: true,
            internal: true,
            ipv6: true,
            ipam: vec![pool],
            options: [("k".to_owned(), "v".to_owned())].into(),
            ..types::NetworkSpec::default()
        };
        let port = types::PortSpec {
            name: "web".into(),
            protocol: types::PortProtocol::Sctp,
            target: 80,
            published: 30_000,
            mode: types::PublishMode::Host,
            host: "eth0".into(),
        };
        let vip = types::VirtualAddress { network, v4, v6 };
        let endpoint = Arc::new(types::Endpoint { vips: vec![vip], ports: vec![port] });
        let one = types::Attachment { network, v4, v6: None };
        let connection = types::Connection { attachment: one, aliases: vec!["db".into()] };
        let given = types::TaskNetwork {
            attachments: vec![one],
            mesh: Some(one),
            connected: vec![connection.clone()],
        };
        vec![
            Change::CreateNetwork { id: network, spec: Arc::new(spec) },
            Change::AllocateNetwork { id: network, vni: 5_000, mtu: 1_450, subnets: vec![subnet] },
            Change::SetEndpoint { service, endpoint: Some(endpoint) },
            Change::SetEndpoint { service, endpoint: None },
            Change::AttachTasks(vec![(task, given)]),
            Change::ConnectTask { task, connection: Box::new(connection) },
            Change::DisconnectTask { task, network },
            Change::RemoveNetwork(network),
        ]
    }

    #[test]
    fn every_change_comes_back_whole() {
        let view = view();
        let node = view.node(node_id("a")).unwrap();
        let service = view.service(service_id("web")).unwrap();
        let tasks: Vec<TaskId> = view.tasks().map(|task| task.id).collect();
        let status = view.task(tasks[0]).unwrap().status.clone();
        let (id, expect, first) = (node.id, 7, tasks[0]);
        let reason = types::Reason {
            decider: "scheduler".into(),
            code: "c".into(),
            message: "m".into(),
            count: 2,
            since: Timestamp(9),
        };
        let update = types::UpdateStatus {
            state: types::UpdateState::Paused,
            started: Timestamp(1),
            completed: Timestamp(2),
            message: "m".into(),
        };
        let changes = vec![
            Change::CreateCluster(Box::new((**view.cluster().unwrap()).clone())),
            Change::UpdateCluster { expect, spec: Box::default() },
            Change::RotateNetworkKey { expect: 7 },
            Change::AddAddressPools(vec!["10.0.0.0/8".into()]),
            Change::SetJoinTokens { worker: "w".into(), manager: "m".into() },
            Change::CreateNode(Box::new((**node).clone())),
            Change::UpdateNode { id, expect, spec: node.spec.clone() },
            Change::DescribeNode { id, description: Box::new(node.description.clone()) },
            Change::SetNodeStatus { id, status: node.status.clone() },
            Change::SetNodeRole { id, role: types::NodeRole::Manager },
            Change::SetNodeManager {
                id,
                manager: Some(types::ManagerStatus { raft_id: 3, address: "x:1".into() }),
            },
            Change::SetNodeManager { id, manager: None },
            Change::SetNodeNumber { id, number: 4 },
            Change::SetNodeCertificate { id, expires: Timestamp(5) },
            Change::RemoveNode(id),
            Change::CreateService { id: service.id, spec: Arc::clone(&service.spec) },
            Change::UpdateService { id: service.id, expect, spec: Arc::clone(&service.spec) },
            Change::RemoveService(service.id),
            Change::SetUpdateStatus { id: service.id, status: Some(update) },
            Change::SetUpdateStatus { id: service.id, status: None },
            Change::SetReason { service: service.id, decider: "x".into(), reason: Some(reason) },
            Change::CreateTasks {
                service: service.id,
                revision: 8,
                seed: 99,
                desired: types::TaskState::Ready,
                slots: vec![(1, 5), (7, 7)],
                nodes: vec![id],
            },
            Change::AdmitTasks(tasks.clone()),
            Change::AssignTasks(tasks.iter().map(|task| (*task, id)).collect()),
            Change::DesireTasks { desired: types::TaskState::Remove, tasks: tasks.clone() },
            Change::ReportTasks(vec![(tasks[0], status)]),
            Change::RemoveTasks(tasks.clone()),
            Change::SetTally {
                service: service.id,
                slot: SlotKey::Node(id),
                tally: Some(types::Tally { attempts: 2, ..types::Tally::default() }),
            },
        ];
        let changes = [changes, network_changes(service.id, first)].concat();
        let atoms = vec![ChangeSet { author: Author::Api, changes }];
        let proposal = Proposal { time: Timestamp(3), atoms };
        assert_eq!(decode_proposal(&encode_proposal(&proposal)).unwrap(), proposal);
    }

    #[test]
    fn what_this_version_does_not_know_is_not_skipped() {
        let mut bytes = encode_proposal(&Proposal::default());
        assert!(decode_proposal(&bytes).is_ok());
        bytes.extend_from_slice(&[0xf8, 0x3f, 1]); // field 1023, a number
        assert!(matches!(decode_proposal(&bytes), Err(StoredError::Unknown)));
        let newer = form::Proposal { format: FORMAT + 1, ..form::Proposal::default() };
        let newer = decode_proposal(&newer.encode_to_vec());
        assert!(matches!(newer, Err(StoredError::Format { .. })));
        let odd =
            form::Change { change: Some(Form::AdmitTasks(form::Tasks { ids: vec![1].into() })) };
        assert!(change_from_wire(odd).is_err());
    }
}

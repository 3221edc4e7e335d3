//! Changes of networks, and of what is given out on them, as they are stored.
//!
//! Owns: their conversions. Does not know: the other changes.
//! Invariant: what goes out and comes back is the same.

use std::sync::Arc;

use state::Change;
use types::{Fault, TaskId};

use super::{needed, stored_fault};
use crate::store_v1 as form;
use crate::store_v1::change::Change as Form;
use crate::{bytes_of, id as identity};

pub(super) fn change_to_wire(change: &Change) -> Form {
    match change {
        Change::CreateNetwork { id, spec } => Form::CreateNetwork(form::CreateNetwork {
            id: bytes_of(id.0),
            spec: Some(spec.as_ref().into()),
        }),
        Change::RemoveNetwork(id) => Form::RemoveNetwork(bytes_of(id.0)),
        Change::AllocateNetwork { id, vni, mtu, subnets } => {
            Form::AllocateNetwork(form::AllocateNetwork {
                id: bytes_of(id.0),
                vni: *vni,
                mtu: *mtu,
                subnets: subnets.iter().map(Into::into).collect(),
            })
        }
        Change::SetEndpoint { service, endpoint } => Form::SetEndpoint(form::SetEndpoint {
            service: bytes_of(service.0),
            endpoint: endpoint.as_ref().map(|endpoint| endpoint.as_ref().into()),
        }),
        Change::AttachTasks(list) => {
            let one = |(id, network): &(TaskId, types::TaskNetwork)| form::AttachTask {
                id: bytes_of(id.0),
                network: Some(network.into()),
            };
            Form::AttachTasks(form::AttachTasks { tasks: list.iter().map(one).collect() })
        }
        Change::ConnectTask { task, connection } => Form::ConnectTask(form::ConnectTask {
            task: bytes_of(task.0),
            connection: Some(connection.as_ref().into()),
        }),
        Change::DisconnectTask { task, network } => Form::DisconnectTask(form::DisconnectTask {
            task: bytes_of(task.0),
            network: bytes_of(network.0),
        }),
        // Every other change has been handled by the callers.
        _ => Form::RemoveTasks(form::Tasks::default()),
    }
}

pub(super) fn change_from_wire(form: Form) -> Result<Change, Fault> {
    Ok(match form {
        Form::CreateNetwork(f) => Change::CreateNetwork {
            id: identity(&f.id, "id")?,
            spec: Arc::new(needed(f.spec, "spec")?),
        },
        Form::RemoveNetwork(id) => Change::RemoveNetwork(identity(&id, "id")?),
        Form::AllocateNetwork(f) => Change::AllocateNetwork {
            id: identity(&f.id, "id")?,
            vni: f.vni,
            mtu: f.mtu,
            subnets: f.subnets.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        },
        Form::SetEndpoint(f) => Change::SetEndpoint {
            service: identity(&f.service, "service")?,
            endpoint: f.endpoint.map(TryInto::try_into).transpose()?.map(Arc::new),
        },
        Form::AttachTasks(f) => {
            let one = |f: form::AttachTask| -> Result<_, Fault> {
                Ok((identity(&f.id, "id")?, needed(f.network, "network")?))
            };
            Change::AttachTasks(f.tasks.into_iter().map(one).collect::<Result<_, _>>()?)
        }
        Form::ConnectTask(f) => Change::ConnectTask {
            task: identity(&f.task, "task")?,
            connection: Box::new(needed(f.connection, "connection")?),
        },
        Form::DisconnectTask(f) => Change::DisconnectTask {
            task: identity(&f.task, "task")?,
            network: identity(&f.network, "network")?,
        },
        _ => return Err(stored_fault("is a change that this version does not know")),
    })
}

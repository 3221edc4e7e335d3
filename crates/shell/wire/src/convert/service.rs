//! Services as they are stored.
//!
//! Owns: the conversions of `Service`, its update status and its reasons.
//! Does not know: how many of its tasks run.
//! Invariant: a service that goes out and comes back is the same.

use std::sync::Arc;

use base::Timestamp;
use types::{Fault, Reason, Service, UpdateState, UpdateStatus};

use super::{id, required, unknown};
use crate::v1;

impl From<&Service> for v1::Service {
    fn from(service: &Service) -> Self {
        Self {
            id: service.id.to_bytes().to_vec().into(),
            meta: Some(service.meta.into()),
            spec: Some(service.spec.as_ref().into()),
            previous: service.previous.as_ref().map(|spec| spec.as_ref().into()),
            revision: service.revision,
            update_status: service.update.as_ref().map(Into::into),
            reasons: service.reasons.iter().map(Into::into).collect(),
            endpoint: service.endpoint.as_ref().map(|endpoint| endpoint.as_ref().into()),
        }
    }
}

impl TryFrom<v1::Service> for Service {
    type Error = Fault;

    fn try_from(service: v1::Service) -> Result<Self, Fault> {
        let previous = service.previous.map(TryInto::try_into).transpose()?;
        let endpoint = service.endpoint.map(TryInto::try_into).transpose()?;
        Ok(Self {
            id: id(&service.id, "service.id")?,
            meta: required(service.meta, "service.meta")?.into(),
            spec: Arc::new(required(service.spec, "service.spec")?.try_into()?),
            previous: previous.map(Arc::new),
            revision: service.revision,
            update: service.update_status.map(TryInto::try_into).transpose()?,
            reasons: service.reasons.into_iter().map(Into::into).collect(),
            endpoint: endpoint.map(Arc::new),
        })
    }
}

impl From<&UpdateStatus> for v1::UpdateStatus {
    fn from(status: &UpdateStatus) -> Self {
        Self {
            state: status.state as i32,
            started_at: status.started.0,
            completed_at: status.completed.0,
            message: status.message.clone(),
        }
    }
}

impl TryFrom<v1::UpdateStatus> for UpdateStatus {
    type Error = Fault;

    fn try_from(status: v1::UpdateStatus) -> Result<Self, Fault> {
        let state = match status.state {
            1 => UpdateState::Updating,
            2 => UpdateState::Paused,
            3 => UpdateState::Completed,
            4 => UpdateState::RollbackStarted,
            5 => UpdateState::RollbackPaused,
            6 => UpdateState::RollbackCompleted,
            other => return Err(unknown("service.update_status.state", other)),
        };
        Ok(Self {
            state,
            started: Timestamp(status.started_at),
            completed: Timestamp(status.completed_at),
            message: status.message,
        })
    }
}

impl From<&Reason> for v1::Reason {
    fn from(reason: &Reason) -> Self {
        Self {
            decider: reason.decider.clone(),
            code: reason.code.clone(),
            message: reason.message.clone(),
            count: reason.count,
            since: reason.since.0,
        }
    }
}

impl From<v1::Reason> for Reason {
    fn from(reason: v1::Reason) -> Self {
        Self {
            decider: reason.decider,
            code: reason.code,
            message: reason.message,
            count: reason.count,
            since: Timestamp(reason.since),
        }
    }
}

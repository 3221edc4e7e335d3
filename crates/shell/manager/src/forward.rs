//! Who answers, and how an answer reaches the caller from another manager.
//!
//! Owns: the words for "not the leader", and channels to whoever leads.
//! Invariant: a caller that asked the wrong manager is told the right one, or that there is none.

use std::sync::{Arc, Mutex, PoisonError};

use pki::NodeTls;
use ports::store::{ProposeError, Store};
use tonic::transport::Channel;
use types::{ErrorCode, Fault};

/// Swarm's words for a cluster without a leader.
const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers are \
                         online. Make sure more than half of the managers are online.";

/// The fault that sends a caller to the leader: its address stands in the hint.
#[must_use]
pub fn not_leader(leader: Option<&str>) -> Fault {
    match leader {
        Some(address) => Fault {
            field: "leader".into(),
            ..Fault::new(ErrorCode::Unavailable, "this manager is not the leader").hint(address)
        },
        None => Fault::new(ErrorCode::NoQuorum, NO_LEADER),
    }
}

/// The same for everything that can become of a proposal.
#[must_use]
pub fn fault_of_proposal(error: &ProposeError) -> Fault {
    let code = match error {
        ProposeError::NotLeader { leader } => return not_leader(leader.as_deref()),
        ProposeError::NoQuorum => return not_leader(None),
        ProposeError::TooLarge { .. } => ErrorCode::Invalid,
        ProposeError::NoSpace { .. } => ErrorCode::NoSpace,
        ProposeError::TimedOut => ErrorCode::TimedOut,
        ProposeError::Stopped { .. } => ErrorCode::Unavailable,
    };
    Fault::new(code, error.to_string())
}

/// Channels to the leader, kept while it stays the same.
#[derive(Clone)]
pub struct Leader<S> {
    store: S,
    tls: Arc<NodeTls>,
    kept: Arc<Mutex<Option<(String, Channel)>>>,
}

/// Where a request is to be answered.
pub enum Answer {
    Here,
    There(Channel),
    /// Nobody leads.
    Nowhere,
}

impl<S: Store> Leader<S> {
    pub fn new(store: S, tls: Arc<NodeTls>) -> Self {
        Self { store, tls, kept: Arc::default() }
    }

    /// Where the leader is.
    pub fn locate(&self) -> Result<Answer, Fault> {
        let leadership = self.store.leadership().borrow().clone();
        if leadership.is_leader {
            return Ok(Answer::Here);
        }
        match leadership.leader {
            Some((raft_id, address)) if raft_id != self.store.raft_id() => {
                self.channel(&address).map(Answer::There)
            }
            _ => Ok(Answer::Nowhere),
        }
    }

    fn channel(&self, address: &str) -> Result<Channel, Fault> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, channel)) = kept.as_ref()
            && known == address
        {
            return Ok(channel.clone());
        }
        let internal = |problem: String| Fault::new(ErrorCode::Internal, problem);
        let expected = pki::Expected::default();
        let connector =
            pki::connector(&self.tls, expected).map_err(|error| internal(error.to_string()))?;
        let channel =
            pki::channel(address, connector).map_err(|error| internal(error.to_string()))?;
        *kept = Some((address.to_owned(), channel.clone()));
        Ok(channel)
    }
}

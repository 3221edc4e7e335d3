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

/// What became of a write is not known: its leader was replaced before it answered.
#[must_use]
pub(crate) fn replaced_meanwhile() -> Fault {
    let message = "the leader was replaced before it answered: the write may have been stored";
    Fault::new(ErrorCode::Unavailable, message).hint("look, and repeat it when it was not")
}

/// The answer to a call, unless the leader that was asked is replaced first.
pub(crate) async fn unless_replaced<T>(
    call: impl Future<Output = T>,
    replaced: impl Future<Output = ()>,
) -> Option<T> {
    tokio::select! {
        biased;
        answer = call => Some(answer),
        () = replaced => None,
    }
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

    /// Ends when another manager leads than does now: what was asked of the one before need not be
    /// waited for, as its connection may be dead for a while before that shows.
    pub fn replaced(&self) -> impl Future<Output = ()> + Send + use<S> {
        let mut leadership = self.store.leadership();
        let asked = leadership.borrow_and_update().leader.as_ref().map(|(id, _)| *id);
        async move {
            let another = leadership
                .wait_for(|now| now.leader.as_ref().is_some_and(|(id, _)| Some(*id) != asked));
            if another.await.is_err() {
                // The store has ended; the call itself will notice.
                std::future::pending::<()>().await;
            }
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

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn a_leader_that_is_replaced_is_not_waited_for() {
        assert_eq!(unless_replaced(ready(1), pending()).await, Some(1));
        assert_eq!(unless_replaced(ready(1), ready(())).await, Some(1), "an answer is one");
        assert_eq!(unless_replaced(pending::<u8>(), ready(())).await, None);
        assert!(replaced_meanwhile().message.contains("may have been stored"));
    }
}

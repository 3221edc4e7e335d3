//! Connecting a running container to a network, and disconnecting it.
//!
//! Owns: the order of the steps, and taking back what was half done.
//! Does not know: links, addresses.
//! Invariant: a container that could not be connected is as it was before.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use base::chain;
use network::{AskedBy, Joining, LocalContainer};
use ports::runtime::{ContainerState, Runtime, RuntimeError};
use tokio::sync::watch;
use types::{Attachment, ErrorCode, Fault, LocalNetwork, NetworkId};
use wire::v1;

use super::NodeNetwork;

/// What somebody asks for besides the network and the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wishes {
    pub(crate) v4: Option<std::net::Ipv4Addr>,
    pub(crate) v6: Option<std::net::Ipv6Addr>,
    pub(crate) aliases: Vec<String>,
}

impl Wishes {
    /// # Errors
    /// When an address is none, or an alias is no name.
    pub(crate) fn of(request: &v1::ConnectNetworkRequest) -> Result<Self, Fault> {
        let aliases = request.aliases.clone();
        types::check_aliases("--alias", &aliases)?;
        Ok(Self { v4: parse("--ip", &request.ip)?, v6: parse("--ip6", &request.ip6)?, aliases })
    }
}

fn parse<T: FromStr>(flag: &str, text: &str) -> Result<Option<T>, Fault> {
    let bad = |_| {
        let family = if flag == "--ip" { "IPv4" } else { "IPv6" };
        Fault::invalid(flag, format!("`{text}` is not an {family} address"))
    };
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(bad) }
}

/// What the last attempt of each container to be on its networks came to. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Attempts {
    failed: Arc<Mutex<BTreeMap<String, String>>>,
    count: watch::Sender<u64>,
}

impl Attempts {
    pub(super) fn note(&self, id: &str, error: Option<&RuntimeError>) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            Some(error) => drop(failed.insert(id.to_owned(), chain(error).to_string())),
            None => drop(failed.remove(id)),
        }
        drop(failed);
        self.count.send_modify(|count| *count += 1);
    }

    pub(super) fn forget(&self, id: &str) {
        self.note(id, None);
    }

    fn why(&self, id: &str) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }
}

impl NodeNetwork {
    /// Waits until a container is on a network, or is not any more, because somebody wanted it so;
    /// gives the reason of the last failure when the time is over.
    pub(crate) async fn until_connected(
        &self,
        id: &str,
        network: NetworkId,
        connected: bool,
        deadline: tokio::time::Instant,
    ) -> Result<(), String> {
        let mut attempts = self.attempts.count.subscribe();
        loop {
            attempts.borrow_and_update();
            let why = self.attempts.why(id);
            if why.is_none() && self.is_connected(id, network) == connected {
                return Ok(());
            }
            let changed = tokio::time::timeout_at(deadline, attempts.changed()).await;
            if changed.is_err() {
                return Err(why.unwrap_or_else(|| "context deadline exceeded".to_owned()));
            }
        }
    }

    /// Whether a container is on a network because somebody connected it.
    fn is_connected(&self, id: &str, network: NetworkId) -> bool {
        let links = self.path.container(id).map(|container| container.links).unwrap_or_default();
        let connected = |end: &network::LocalLink| {
            end.network == Some(network) && end.asked_by == AskedBy::Managers
        };
        links.iter().any(connected)
    }

    /// The container that somebody means, if it runs.
    pub(crate) async fn running(
        &self,
        runtime: &impl Runtime,
        text: &str,
    ) -> Result<(String, LocalContainer), Fault> {
        let (id, container) = self.find_container(text)?;
        let all = runtime.observe().await.map_err(|error| internal(&error))?;
        let is_running = |one: &&ports::runtime::ContainerObservation| {
            one.id == id && matches!(one.state, ContainerState::Running { .. })
        };
        match all.iter().find(is_running) {
            Some(_) => Ok((id, container)),
            None => {
                let name = container.names.first().unwrap_or(&id);
                let message = format!("container {name} is not running");
                Err(Fault::new(ErrorCode::FailedPrecondition, message))
            }
        }
    }

    /// Connects a container to a network of the node's own.
    pub(crate) async fn connect_own(
        &self,
        id: &str,
        network: &LocalNetwork,
        wishes: Wishes,
    ) -> Result<(), Fault> {
        match network.id {
            NetworkId::HOST => {
                let message = "container cannot be disconnected from host network or connected to \
                               host network";
                return Err(Fault::new(ErrorCode::FailedPrecondition, message));
            }
            NetworkId::NONE => {
                let message = "container cannot be connected to multiple networks with one of the \
                               networks in private (none) mode";
                return Err(Fault::new(ErrorCode::FailedPrecondition, message));
            }
            NetworkId::BRIDGE => {
                if !wishes.aliases.is_empty() {
                    let message =
                        "network-scoped aliases are only supported for user-defined networks";
                    return Err(Fault::invalid("--alias", message));
                }
                self.ensure_bridge().await?;
            }
            _ if network.spec.config_only || network.swarm => {
                let name = &network.spec.name;
                let what = if network.swarm {
                    format!("network {name} not manually attachable")
                } else {
                    format!("network {name} is a configuration: no container can be on it")
                };
                return Err(Fault::new(ErrorCode::PermissionDenied, what));
            }
            _ => {}
        }
        let attachment = Attachment { network: network.id, v4: wishes.v4, v6: wishes.v6 };
        self.path.join(id, Joining { attachment, aliases: wishes.aliases }).await?;
        if let Err(error) = self.serve_again(id).await {
            self.path.part(id, network.id).await?;
            return Err(internal(&error));
        }
        self.tell_names().await;
        Ok(())
    }

    pub(crate) async fn disconnect_own(
        &self,
        id: &str,
        network: &LocalNetwork,
    ) -> Result<(), Fault> {
        self.path.part(id, network.id).await?;
        self.tell_names().await;
        self.serve_again(id).await.map_err(|error| internal(&error))
    }
}

pub(crate) fn internal(error: &RuntimeError) -> Fault {
    Fault::new(ErrorCode::Internal, chain(error).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_that_make_no_sense_are_refused_with_their_flag() {
        let request = |ip: &str, ip6: &str, alias: &str| v1::ConnectNetworkRequest {
            ip: ip.into(),
            ip6: ip6.into(),
            aliases: vec![alias.into()],
            ..v1::ConnectNetworkRequest::default()
        };
        let good = Wishes::of(&request("10.0.0.7", "fd00::7", "db")).unwrap();
        assert!(good.v4.is_some() && good.v6.is_some());
        for (request, field) in [
            (request("10.0.0", "", "db"), "--ip"),
            (request("fd00::7", "", "db"), "--ip"),
            (request("", "10.0.0.7", "db"), "--ip6"),
            (request("", "", "a b"), "--alias"),
            (request("", "", ""), "--alias"),
        ] {
            assert_eq!(Wishes::of(&request).unwrap_err().field, field, "{request:?}");
        }
    }
}

//! Keys and tunnels of encrypted networks, carried between those who know of them.
//!
//! Owns: which keys this node has, telling netd of the tunnels and the data path of what is seen.
//! Does not know: who encrypts, when peers are switched from one key to the next.
//! Invariant: tunnels of an earlier daemon stand until the managers were heard, and the data path
//! hears of a key before anybody else does.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use base::chain;
use network::{PeerSeen, TunnelSeen};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use types::DirectoryUpdate;

use super::{NodeNetwork, RETRY_PERIOD};
use crate::network_keys::{Keys, NetworkKeys, Wanted};

/// This node's end of encrypted networks. Clones share everything.
#[derive(Clone, Debug)]
pub(super) struct Encryption {
    files: NetworkKeys,
    wanted: Arc<Mutex<Wanted>>,
    /// What the data path was told; one change at a time.
    told: Arc<tokio::sync::Mutex<Option<Keys>>>,
    /// Whether an update was carried out since this daemon began.
    informed: watch::Sender<bool>,
    /// There is something new to be said of this node.
    news: Arc<Notify>,
    /// Keys are not what they should be.
    unsettled: Arc<Notify>,
}

/// Why the keeper looks.
enum Cause {
    Shutdown,
    Tunnels,
    Rotation,
    Time,
}

/// How it was when it was looked at last.
#[derive(Default)]
struct Looked {
    /// Which peers have been heard, by generation.
    heard: BTreeSet<(u32, types::NetworkKey)>,
    failed: BTreeSet<u32>,
}

impl Encryption {
    pub(super) fn new(files: NetworkKeys) -> Self {
        Self {
            files,
            wanted: Arc::default(),
            told: Arc::default(),
            informed: watch::Sender::new(false),
            news: Arc::default(),
            unsettled: Arc::default(),
        }
    }

    /// Notes what an update says; the keys must be settled then.
    pub(super) fn learn(&self, update: &DirectoryUpdate) -> bool {
        let wanted = match &update.own {
            Some(own) => Wanted::Generation(own.encryption.generation),
            // Only where there is no cluster.
            None if update.full => Wanted::None,
            None => return false,
        };
        let mut known = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *known, wanted) != wanted
    }

    pub(super) fn carried_out(&self) {
        self.informed.send_if_modified(|informed| !std::mem::replace(informed, true));
    }

    pub(super) fn try_again(&self) {
        self.unsettled.notify_one();
    }

    fn wanted(&self) -> Wanted {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NodeNetwork {
    /// Until there is something new to be said of this node's data path.
    pub(crate) async fn news(&self) {
        self.encryption.news.notified().await;
    }

    /// Makes the keys those that are wanted, and tells the data path.
    pub(super) async fn settle_keys(&self) -> Result<()> {
        let mut told = self.encryption.told.lock().await;
        let droppable = self.path.rotation().borrow().droppable.clone();
        let (files, wanted) = (self.encryption.files.clone(), self.encryption.wanted());
        let keys = tokio::task::spawn_blocking(move || files.settle(wanted, &droppable))
            .await
            .context("keys of encrypted networks")??;
        if told.as_ref() != Some(&keys) {
            self.path.set_keys(keys.clone()).await?;
            *told = Some(keys);
            self.encryption.news.notify_one();
        }
        Ok(())
    }

    /// Carries keys, tunnels and what is seen of them to where they are needed, until told to stop.
    pub(crate) async fn keep_encryption(&self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = std::pin::pin!(shutdown);
        let (mut tunnels, mut rotation) = (self.path.tunnels(), self.path.rotation());
        let mut informed = self.encryption.informed.subscribe();
        tunnels.mark_changed();
        rotation.mark_changed();
        let (mut looked, mut busy_until) = (Looked::default(), Instant::now());
        let (mut untold, mut unsettled) = (false, false);
        loop {
            let (count, is_busy) = (tunnels.borrow().len(), Instant::now() < busy_until);
            let pause = match count > 1 || is_busy || untold || unsettled {
                true => BUSY_PERIOD,
                false => LOOK_PERIOD,
            };
            let cause = tokio::select! {
                biased;
                () = &mut shutdown => Cause::Shutdown,
                Ok(()) = tunnels.changed() => Cause::Tunnels,
                Ok(()) = informed.changed() => Cause::Tunnels,
                Ok(()) = rotation.changed() => Cause::Rotation,
                () = self.encryption.unsettled.notified() => Cause::Rotation,
                () = tokio::time::sleep(pause), if count > 0 || untold || unsettled => Cause::Time,
            };
            match cause {
                Cause::Shutdown => return,
                Cause::Tunnels => untold = true,
                Cause::Rotation => {
                    rotation.borrow_and_update();
                    self.encryption.news.notify_one();
                    unsettled = true;
                }
                Cause::Time => {}
            }
            if unsettled {
                unsettled = self.try_to_settle().await;
            }
            if untold {
                let wanted = tunnels.borrow_and_update().clone();
                untold = !self.tell_tunnels(wanted).await;
                busy_until = Instant::now() + BUSY_TIME;
            }
            if self.look(&mut looked).await {
                busy_until = Instant::now() + BUSY_TIME;
            }
        }
    }

    /// Whether it must be tried again.
    async fn try_to_settle(&self) -> bool {
        let settled = self.settle_keys().await;
        if let Err(error) = &settled {
            tracing::warn!(error = format!("{error:#}"), "keys of encrypted networks");
            tokio::time::sleep(RETRY_PERIOD).await;
        }
        settled.is_err()
    }

    /// Whether netd knows of them now.
    async fn tell_tunnels(&self, wanted: Vec<network::Tunnel>) -> bool {
        if wanted.is_empty() && !*self.encryption.informed.borrow() {
            // Those of an earlier daemon are needed until it is known that they are not.
            return true;
        }
        let tunnels = wanted.into_iter().map(|tunnel| {
            let key_file = self.encryption.files.file(tunnel.generation);
            to_netd(tunnel, key_file)
        });
        match self.names.set_tunnels(tunnels.collect()).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "tunnels are not served as they should be");
                tokio::time::sleep(RETRY_PERIOD).await;
                false
            }
        }
    }

    /// Tells the data path what is seen; whether that was something new.
    async fn look(&self, looked: &mut Looked) -> bool {
        let seen = match self.names.tunnels().await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "tunnels are not seen");
                return false;
            }
        };
        let wanted: BTreeSet<u32> =
            self.path.tunnels().borrow().iter().map(|tunnel| tunnel.generation).collect();
        let mut now = Looked::default();
        // One that goes loses its device before netd hears of it.
        for tunnel in seen.iter().filter(|tunnel| wanted.contains(&tunnel.generation)) {
            let heard = tunnel.peers.iter().filter(|peer| peer.handshake_age.is_some());
            now.heard.extend(heard.map(|peer| (tunnel.generation, peer.key)));
            if let Some(failure) = &tunnel.failure {
                if !looked.failed.contains(&tunnel.generation) {
                    let generation = tunnel.generation;
                    tracing::error!(generation, failure, "a tunnel of encrypted networks fails");
                }
                now.failed.insert(tunnel.generation);
            }
        }
        let seen = seen.into_iter().map(from_netd).collect();
        if let Err(error) = self.path.set_tunnels_seen(seen).await {
            tracing::warn!(error = %chain(&error), "what is seen of tunnels is not told");
        }
        let is_new = (&now.heard, &now.failed) != (&looked.heard, &looked.failed);
        *looked = now;
        is_new
    }
}

fn to_netd(tunnel: network::Tunnel, key_file: std::path::PathBuf) -> netd::Tunnel {
    let peers = tunnel.peers.into_iter().map(|peer| netd::TunnelPeer {
        number: peer.number,
        key: peer.key,
        endpoint: peer.endpoint,
        address: peer.address,
        keepalive: peer.keepalive,
    });
    netd::Tunnel {
        generation: tunnel.generation,
        netns: tunnel.netns,
        device: tunnel.device,
        port: tunnel.port,
        address: tunnel.address,
        mtu: tunnel.mtu,
        key_file,
        peers: peers.collect(),
    }
}

fn from_netd(tunnel: netd::TunnelStatus) -> TunnelSeen {
    let peers = tunnel.peers.into_iter().map(|peer| PeerSeen {
        key: peer.key,
        endpoint: peer.endpoint,
        handshake_age: peer.handshake_age,
        sent_bytes: peer.traffic.sent_bytes,
        received_bytes: peer.traffic.received_bytes,
        drops: peer.drops,
    });
    TunnelSeen {
        generation: tunnel.generation,
        peers: peers.collect(),
        drops: tunnel.drops,
        failure: tunnel.failure,
    }
}

/// How often it is looked what became of the tunnels.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// The same while something changes, and for so long after.
const BUSY_PERIOD: Duration = Duration::from_millis(100);
const BUSY_TIME: Duration = Duration::from_secs(5);

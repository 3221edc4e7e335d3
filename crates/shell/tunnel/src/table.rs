//! The peers of a node, as threads see them.
//!
//! Owns: finding a peer by address, by the protocol's number, by key; exchanging the whole table.
//! Does not know: what is done with a peer. Invariant: a table does not change; who looks at the
//! generation sees when there is another.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::TunnelError;
use crate::key::PublicKey;
use crate::peer::{Peer, PeerConfig};

/// One generation of peers.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) peers: Vec<Arc<Peer>>,
    by_address: HashMap<Ipv4Addr, Arc<Peer>>,
    by_index: HashMap<u32, Arc<Peer>>,
    by_key: HashMap<PublicKey, Arc<Peer>>,
}

impl Table {
    pub(crate) fn new(peers: Vec<Arc<Peer>>) -> Self {
        let mut table = Self::default();
        for peer in &peers {
            table.by_address.insert(peer.config.address, Arc::clone(peer));
            table.by_index.insert(peer.index, Arc::clone(peer));
            table.by_key.insert(peer.config.key, Arc::clone(peer));
        }
        table.peers = peers;
        table
    }

    pub(crate) fn by_address(&self, address: Ipv4Addr) -> Option<&Arc<Peer>> {
        self.by_address.get(&address)
    }

    /// By the receiver's number of a message, whose lowest byte counts sessions.
    pub(crate) fn by_receiver(&self, receiver: u32) -> Option<&Arc<Peer>> {
        self.by_index.get(&(receiver >> 8))
    }

    pub(crate) fn by_key(&self, key: &PublicKey) -> Option<&Arc<Peer>> {
        self.by_key.get(key)
    }
}

/// Where the newest table is.
#[derive(Default)]
pub(crate) struct Tables {
    generation: AtomicU64,
    newest: RwLock<Arc<Table>>,
}

impl Tables {
    pub(crate) fn newest(&self) -> Arc<Table> {
        Arc::clone(&self.newest.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn exchange(&self, table: Table) {
        *self.newest.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// A view of the newest table, at the price of one load.
pub(crate) struct View {
    generation: u64,
    table: Arc<Table>,
}

impl View {
    pub(crate) fn new(tables: &Tables) -> Self {
        let generation = tables.generation.load(Ordering::Acquire);
        Self { generation, table: tables.newest() }
    }

    pub(crate) fn table(&mut self, tables: &Tables) -> &Arc<Table> {
        let generation = tables.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.generation = generation;
            self.table = tables.newest();
        }
        &self.table
    }
}

/// Refuses peers that could not be told apart.
pub(crate) fn check_peers(
    peers: &[PeerConfig],
    own_key: PublicKey,
    own_address: Ipv4Addr,
) -> Result<(), TunnelError> {
    if peers.len() > PEERS_MAX {
        return Err(TunnelError::TooManyPeers { most: PEERS_MAX });
    }
    let (mut keys, mut addresses) = (HashSet::from([own_key]), HashSet::from([own_address]));
    for peer in peers {
        if !keys.insert(peer.key) {
            return Err(TunnelError::SameKey { key: peer.key });
        }
        if !addresses.insert(peer.address) {
            return Err(TunnelError::SameAddress { address: peer.address });
        }
    }
    Ok(())
}

/// More than the nodes of the largest cluster.
const PEERS_MAX: usize = 20_000;

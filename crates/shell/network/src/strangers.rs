//! Hosts that send packets of a network without being one of its nodes.
//!
//! Owns: reading what the rules remembered of them. Does not know: why they send.
//! Invariant: what is read here was dropped.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netplan::Scope;
use types::NetworkId;

use crate::node::Node;
use crate::tables::host::{STRANGERS4, STRANGERS6};

impl Node {
    /// Their addresses, of the last minute.
    pub(crate) fn strangers(&mut self, network: NetworkId) -> io::Result<Vec<IpAddr>> {
        let part = match self.scope_of(network) {
            Scope::Overlay(id) => self.planner.network(id),
            Scope::Mesh | Scope::Host | Scope::Tunnel => self.planner.ingress(),
        };
        let Some(vni) = part.map(|part| part.vni) else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for set in [STRANGERS4, STRANGERS6] {
            let found = self.host.elements_of(set)?;
            all.extend(found.keys().filter_map(|key| address_of(key, vni)));
        }
        all.truncate(STRANGERS_MAX);
        Ok(all)
    }
}

/// Of a key with this network's number.
fn address_of(key: &[u8], vni: u32) -> Option<IpAddr> {
    let (address, number) = key.split_at_checked(key.len().checked_sub(4)?)?;
    if number[..3] != vni.to_be_bytes()[1..] {
        return None;
    }
    match address.len() {
        4 => Some(Ipv4Addr::from(*address.first_chunk::<4>()?).into()),
        16 => Some(Ipv6Addr::from(*address.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// A few are enough to see what is wrong.
const STRANGERS_MAX: usize = 16;

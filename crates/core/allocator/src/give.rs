//! Giving addresses out, in a circle.
//!
//! Owns: the next free address of a network, and what one plan has given.
//! Does not know: to whom. Invariant: what is given is held by nobody, does not rest, and is no
//! address that a service asks for by name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use base::Timestamp;
use state::{Resting, Snapshot};
use types::{Family, Network, NetworkId, Subnet};

/// What one plan has given, and where it stands in each circle.
pub(crate) struct Given<'a> {
    view: &'a Snapshot,
    now: Timestamp,
    taken: BTreeSet<(NetworkId, IpAddr)>,
    cursors: BTreeMap<(NetworkId, usize), u64>,
    /// Networks that were found to have nothing left.
    full: BTreeSet<(NetworkId, Family)>,
}

impl<'a> Given<'a> {
    pub(crate) fn new(view: &'a Snapshot, now: Timestamp) -> Self {
        Self { view, now, taken: BTreeSet::new(), cursors: BTreeMap::new(), full: BTreeSet::new() }
    }

    /// The next free address; `None` when there is none.
    pub(crate) fn next(&mut self, network: &Network, family: Family) -> Option<IpAddr> {
        if self.full.contains(&(network.id, family)) {
            return None;
        }
        let found = network
            .subnets
            .iter()
            .enumerate()
            .filter(|(_, subnet)| subnet.family() == family)
            .find_map(|(place, subnet)| self.next_of(network.id, place, subnet));
        match found {
            Some(address) => {
                self.taken.insert((network.id, address));
            }
            None => {
                self.full.insert((network.id, family));
            }
        }
        found
    }

    fn next_of(&mut self, network: NetworkId, place: usize, subnet: &Subnet) -> Option<IpAddr> {
        let (start, size) = (self.cursor(network, place, subnet), subnet.size());
        for step in 0..size {
            let offset = (start + step) % size;
            let address = subnet.address_at(offset);
            if subnet.may_hold(address) && self.is_free(network, address) {
                self.cursors.insert((network, place), (offset + 1) % size);
                return Some(address);
            }
        }
        None
    }

    fn cursor(&self, network: NetworkId, place: usize, subnet: &Subnet) -> u64 {
        let known = self.cursors.get(&(network, place)).copied();
        known.unwrap_or(subnet.cursor) % subnet.size()
    }

    fn is_free(&self, network: NetworkId, address: IpAddr) -> bool {
        let rests = self.view.rests(Resting::Address(network, address), self.now);
        self.view.holder(network, address).is_none()
            && !self.taken.contains(&(network, address))
            && !rests
            && self.view.fixed_for(network, address).is_none()
    }

    /// Takes an address that is asked for by name; `false` while somebody else holds it.
    pub(crate) fn take(&mut self, network: NetworkId, address: IpAddr) -> bool {
        self.view.holder(network, address).is_none() && self.taken.insert((network, address))
    }
}

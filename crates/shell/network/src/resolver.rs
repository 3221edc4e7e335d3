//! How a container's questions for names reach their resolver.
//!
//! Owns: the rules that lead 127.0.0.11:53 to the port where the resolver really listens.
//! Does not know: who listens there. Invariant: without connection tracking, and changed in one
//! transaction, so that a question goes to one port or the other and never nowhere.
//!
//! The resolver does not listen on port 53 itself, so that an application may do so on 0.0.0.0.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::namespace::enter;
use crate::nft::expression::{Base, Family, Rule};
use crate::nft::table::{Chain, Found, NftSocket, Table};
use crate::nft::{V4_ONLY, hook, priority};
use crate::node::Node;

/// Where each container's questions are led to. Clones share everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resolvers(Arc<Mutex<BTreeMap<String, u16>>>);

impl Resolvers {
    pub(crate) fn port_of(&self, id: &str) -> Option<u16> {
        self.known().get(id).copied()
    }

    pub(crate) fn note(&self, id: &str, port: u16) {
        self.known().insert(id.to_owned(), port);
    }

    pub(crate) fn forget(&self, id: &str) {
        self.known().remove(id);
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, u16>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Leads a container's questions to `port` of 127.0.0.11.
    pub(crate) fn set_resolver(&mut self, id: &str, port: u16) -> io::Result<()> {
        self.lead_to_resolver(id, port)?;
        self.resolvers.note(id, port);
        Ok(())
    }

    /// Puts back what a hand removed; answers whether it had to.
    pub(crate) fn repair_resolver(&mut self, id: &str) -> io::Result<bool> {
        match self.resolvers.port_of(id) {
            Some(port) => self.lead_to_resolver(id, port),
            None => Ok(false),
        }
    }

    fn lead_to_resolver(&self, id: &str, port: u16) -> io::Result<bool> {
        enter(&self.containers.open_one(id)?, || lead_to(port))
    }
}

/// Leads questions of the calling thread's namespace; answers whether it had to.
pub(crate) fn lead_to(port: u16) -> io::Result<bool> {
    let (mut socket, table) = (NftSocket::open()?, table(port));
    match socket.find(&table)? {
        Found::This(_) => Ok(false),
        Found::Nothing | Found::Other => socket.install(&table, &[]).map(|_| true),
    }
}

fn table(port: u16) -> Table {
    let port = port.to_be_bytes();
    let rules = PROTOCOLS
        .into_iter()
        .flat_map(|(protocol, sum)| {
            let asked = Rule::new()
                .destination(Family::V4, 0)
                .is(0, &RESOLVER)
                .protocol(protocol)
                .load(Base::Transport, DESTINATION, 2, 0)
                .is(0, &DNS)
                .value(0, &port)
                .store(Base::Transport, DESTINATION, 2, 0, Some(sum))
                .untracked();
            let answered = Rule::new()
                .source(Family::V4, 0)
                .is(0, &RESOLVER)
                .protocol(protocol)
                .load(Base::Transport, SOURCE, 2, 0)
                .is(0, &port)
                .value(0, &DNS)
                .store(Base::Transport, SOURCE, 2, 0, Some(sum))
                .untracked();
            [asked, answered]
        })
        .collect();
    let chain = Chain::base("out", "filter", hook::OUTPUT, priority::RAW, rules);
    Table::new(V4_ONLY, "shoal-dns", Vec::new(), Vec::new(), vec![chain])
}

const RESOLVER: [u8; 4] = [127, 0, 0, 11];
const DNS: [u8; 2] = 53_u16.to_be_bytes();
/// Where UDP and TCP have their ports, and each its checksum.
const SOURCE: u32 = 0;
const DESTINATION: u32 = 2;
const PROTOCOLS: [(u8, u32); 2] = [(libc::IPPROTO_UDP as u8, 6), (libc::IPPROTO_TCP as u8, 16)];

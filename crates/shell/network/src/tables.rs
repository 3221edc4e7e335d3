//! The tables of our namespaces: their constant parts.
//!
//! Owns: the rules of each kind of namespace.
//! Does not know: netlink; which elements there are.
//! Invariant: everything that changes with the cluster is an element of a set or map.

mod bridge;
pub(crate) mod host;
pub(crate) mod mesh;
pub(crate) mod overlay;
pub(crate) mod tunnel;

use netplan::CLASSES;

use crate::nft::expression::{Family, Rule};
use crate::nft::kind;
pub(crate) use crate::nft::table::Set;
use crate::nft::table::{Chain, Holds, class_chain};

/// Of everything in namespaces of our own.
pub(crate) const OWN_TABLE: &str = "shoal";

/// One chain for each class: it picks a slot and goes where the slot leads.
fn class_chains(rule: impl Fn(Family, u32) -> Rule) -> Vec<Chain> {
    let chain = |class: &u32| {
        let rules = Family::ALL.into_iter().map(|family| rule(family, *class)).collect();
        Chain::plain(&class_chain(*class), rules)
    };
    CLASSES.iter().map(chain).collect()
}

fn members(name: &'static str, parts: &[(u32, u32)]) -> Set {
    set(name, parts, Holds::Members)
}

fn seen(name: &'static str, parts: &[(u32, u32)]) -> Set {
    set(name, parts, Holds::Seen)
}

fn numbers(name: &'static str, parts: &[(u32, u32)]) -> Set {
    set(name, parts, Holds::Numbers)
}

fn slots(name: &'static str, parts: &[(u32, u32)]) -> Set {
    set(name, parts, Holds::Slots)
}

fn classes(name: &'static str, parts: &[(u32, u32)]) -> Set {
    set(name, parts, Holds::Classes)
}

/// Parts are type and bytes.
fn bytes(name: &'static str, parts: &[(u32, u32)], data: &[(u32, u32)]) -> Set {
    let (data_type, length) = joined(data);
    set(name, parts, Holds::Bytes { data_type, bytes: length })
}

fn set(name: &'static str, parts: &[(u32, u32)], holds: Holds) -> Set {
    let (key_type, key_bytes) = joined(parts);
    Set { name, key_type, key_bytes, holds }
}

fn joined(parts: &[(u32, u32)]) -> (u32, u32) {
    let kinds: Vec<u32> = parts.iter().map(|(kind, _)| *kind).collect();
    let bytes = match parts {
        // A part alone is as long as it is.
        [(_, bytes)] => *bytes,
        parts => parts.iter().map(|(_, bytes)| bytes.next_multiple_of(4)).sum(),
    };
    (kind::joined(&kinds), bytes)
}

fn address_part(family: Family) -> (u32, u32) {
    match family {
        Family::V4 => (kind::V4, 4),
        Family::V6 => (kind::V6, 16),
    }
}

const PROTOCOL_PART: (u32, u32) = (kind::PROTOCOL, 1);
const PORT_PART: (u32, u32) = (kind::PORT, 2);
const NUMBER_PART: (u32, u32) = (kind::NUMBER, 4);
const LINK_PART: (u32, u32) = (kind::LINK, 16);

/// The set of one family.
fn of(family: Family, v4: &'static str, v6: &'static str) -> &'static str {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

const TCP: u8 = libc::IPPROTO_TCP as u8;
pub(crate) const UDP: u8 = libc::IPPROTO_UDP as u8;
const SCTP: u8 = libc::IPPROTO_SCTP as u8;

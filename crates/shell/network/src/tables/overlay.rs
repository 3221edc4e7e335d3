//! The table of a network's namespace: virtual addresses.
//!
//! Owns: its rules. Does not know: services.
//! Invariant: all protocols and ports of a virtual address lead to the same choice of slots; no
//! packet leaves with a mark; connections are tracked only where there are virtual addresses.

use std::net::IpAddr;

use netplan::{CLASSES, link, set};

use super::{NUMBER_PART, OWN_TABLE, address_part, bytes, classes, members, numbers, of, slots};
use crate::nft::expression::{Family, Meta, Rule};
use crate::nft::table::{Chain, Table, class_chain, slot_chain};
use crate::nft::{INET, hook, priority};
use crate::route::octets;

/// Of a network that never had a virtual address. A rule that asks for the state of a connection
/// would have the kernel track all of them.
pub(crate) fn plain() -> Table {
    Table::new(INET, OWN_TABLE, Vec::new(), Vec::new(), guards().into())
}

/// `gateways` are those of the network's subnets: a task that comes to itself comes from there.
pub(crate) fn balancing(gateways: &[IpAddr]) -> Table {
    let mut sets = Vec::new();
    for family in Family::ALL {
        let address = address_part(family);
        sets.push(numbers(of(family, set::VIP4, set::VIP6), &[address]));
        let slots = of(family, set::BACKEND4, set::BACKEND6);
        sets.push(bytes(slots, &[address, NUMBER_PART], &[address]));
        let (blocks, size) = blocks(family);
        sets.extend(blocks.iter().map(|name| bytes(name, &[address], &vec![address; size])));
        sets.push(members(of(family, set::SELF4, set::SELF6), &[address, address]));
    }
    sets.push(classes(set::CLASS, &[NUMBER_PART]));
    sets.push(slots(set::SLOT, &[NUMBER_PART]));
    let mut chains: Vec<Chain> = CLASSES.iter().map(|class| of_class(*class)).collect();
    chains.extend((0..set::SLOTS_IN_BLOCKS).map(of_slot));
    // The classes of thousands of addresses are mere numbers. Were they ways to chains, the kernel
    // would go all of them with every change of one.
    let mut before: Vec<Rule> = Family::ALL.into_iter().map(class_as_mark).collect();
    before.push(Rule::new().meta(Meta::Mark, 0).dispatch(set::CLASS, 0));
    let after = Family::ALL.into_iter().filter_map(|family| to_itself(family, gateways)).collect();
    let (pre, post) = (hook::PREROUTING, hook::POSTROUTING);
    chains.extend(guards());
    chains.push(Chain::base("pre", "nat", pre, priority::DESTINATION, before));
    chains.push(Chain::base("post", "nat", post, priority::SOURCE, after));
    Table::new(INET, OWN_TABLE, sets, Vec::new(), chains)
}

fn guards() -> [Chain; 2] {
    let dead = Family::ALL.into_iter().map(dead).collect();
    [
        Chain::base("raw", "filter", hook::PREROUTING, priority::RAW, vec![foreign_source()]),
        Chain::base("dead", "filter", hook::PREROUTING, priority::FILTER, dead),
    ]
}

fn class_as_mark(family: Family) -> Rule {
    let sets = of(family, set::VIP4, set::VIP6);
    Rule::of(family).destination(family, 0).map(sets, 0, 0).set_mark(0)
}

/// The sets of blocks, and how many slots each of them has.
fn blocks(family: Family) -> (&'static [&'static str], usize) {
    match family {
        Family::V4 => (&set::BLOCKS4, set::PER_BLOCK4),
        Family::V6 => (&set::BLOCKS6, set::PER_BLOCK6),
    }
}

/// Picks a slot. While there are few, what is in the slot is the chain's that it has.
fn of_class(class: u32) -> Chain {
    let rules = match class as usize <= set::SLOTS_IN_BLOCKS {
        true => vec![Rule::new().random(class, 0).dispatch(set::SLOT, 0)],
        false => Family::ALL.into_iter().map(|family| one_of_many(family, class)).collect(),
    };
    Chain::plain(&class_chain(class), rules)
}

fn one_of_many(family: Family, class: u32) -> Rule {
    unmarked(family)
        .destination(family, 0)
        .random(class, family.registers())
        .map(of(family, set::BACKEND4, set::BACKEND6), 0, 0)
        .lead_to(family, 0, None)
}

fn of_slot(slot: usize) -> Chain {
    let rule = |family: Family| {
        let (sets, size) = blocks(family);
        let place = family.registers() * (slot % size) as u32;
        unmarked(family)
            .destination(family, 0)
            .map(sets[slot / size], 0, 0)
            .lead_to(family, place, None)
            .comment(format!("dnat to address {} of {}", slot % size + 1, sets[slot / size]))
    };
    Chain::plain(&slot_chain(slot as u32), Family::ALL.into_iter().map(rule).collect())
}

/// The packet goes on without the mark, which would choose among the routes outside.
fn unmarked(family: Family) -> Rule {
    Rule::of(family).value(0, &[0; 4]).set_mark(0)
}

/// No container sends with the address of another one, or of nobody here.
fn foreign_source() -> Rule {
    Rule::new().in_links(link::TASK_PREFIX).source_lies_elsewhere().drop()
}

/// The route would refuse it, too, but it says so a few times a second only, and while the sender
/// is busy with sending, who does not listen before its next attempt.
fn dead(family: Family) -> Rule {
    Rule::of(family).opens_tcp().for_nobody(family).reset()
}

/// A task that was led to itself sees the gateway, so that its answer comes back here.
pub(super) fn to_itself(family: Family, gateways: &[IpAddr]) -> Option<Rule> {
    let gateway = gateways.iter().find(|gateway| gateway.is_ipv4() == (family == Family::V4))?;
    let rule = Rule::of(family)
        .source(family, 0)
        .destination(family, family.registers())
        .within(of(family, set::SELF4, set::SELF6), 0)
        .value(0, &octets(*gateway));
    Some(rule.come_from(family, 0))
}

//! The table of a network's namespace: virtual addresses.
//!
//! Owns: its rules. Does not know: services.
//! Invariant: all protocols and ports of a virtual address lead to the same choice of slots.

use std::net::IpAddr;

use netplan::{link, set};

use super::{NUMBER_PART, OWN_TABLE, TCP, address_part, bytes, class_chains, classes, members, of};
use crate::nft::expression::{Family, NEW, Rule};
use crate::nft::table::{Chain, Table};
use crate::nft::{INET, hook, priority};
use crate::route::octets;

/// `gateways` are those of the network's subnets: a task that comes to itself comes from there.
pub(crate) fn table(gateways: &[IpAddr]) -> Table {
    let mut sets = Vec::new();
    for family in Family::ALL {
        let address = address_part(family);
        sets.push(classes(of(family, set::VIP4, set::VIP6), &[address]));
        let slots = of(family, set::BACKEND4, set::BACKEND6);
        sets.push(bytes(slots, &[address, NUMBER_PART], &[address]));
        sets.push(members(of(family, set::SELF4, set::SELF6), &[address, address]));
    }
    let mut chains = class_chains(slot);
    let before = Family::ALL
        .into_iter()
        .map(|family| {
            Rule::of(family).destination(family, 0).dispatch(of(family, set::VIP4, set::VIP6), 0)
        })
        .collect();
    let after = Family::ALL.into_iter().filter_map(|family| to_itself(family, gateways)).collect();
    let (pre, post) = (hook::PREROUTING, hook::POSTROUTING);
    chains.push(Chain::base("raw", "filter", pre, priority::RAW, vec![foreign_source()]));
    chains.push(Chain::base("pre", "nat", pre, priority::DESTINATION, before));
    let dead = Family::ALL.into_iter().map(dead).collect();
    chains.push(Chain::base("dead", "filter", pre, priority::FILTER, dead));
    chains.push(Chain::base("post", "nat", post, priority::SOURCE, after));
    Table::new(INET, OWN_TABLE, sets, Vec::new(), chains)
}

fn slot(family: Family, class: u32) -> Rule {
    Rule::of(family)
        .destination(family, 0)
        .random(class, family.registers())
        .map(of(family, set::BACKEND4, set::BACKEND6), 0, 0)
        .lead_to(family, 0, None)
}

/// No container sends with the address of another one, or of nobody here.
fn foreign_source() -> Rule {
    Rule::new().in_links(link::TASK_PREFIX).source_lies_elsewhere().drop()
}

/// The route would refuse it, too, but it says so a few times a second only, and while the sender
/// is busy with sending, who does not listen before its next attempt.
fn dead(family: Family) -> Rule {
    Rule::of(family).protocol(TCP).state(NEW).for_nobody(family).reset()
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

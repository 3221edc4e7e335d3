//! The tables of the mesh namespace: published ports, the way back, and who may go where.
//!
//! Owns: their rules. Does not know: services, containers.
//! Invariant: nothing is forwarded but answers, what was translated here, what other nodes send to
//! a published target of a task of this node, and what tasks send outwards.
//!
//! Only the node that a client came to translates. The node of the task remembers in the mark of
//! the connection which node that was, and sends answers there: the last bytes of a node's hardware
//! address are the mark, so they are copied from the first packet, and written into each answer.

use std::net::IpAddr;

use netplan::{MARK, MARK_MASK, link, set};

use super::overlay::to_itself;
use super::{
    LINK_PART, NUMBER_PART, OWN_TABLE, PORT_PART, PROTOCOL_PART, UDP, address_part, bytes,
    class_chains, classes, members, of,
};
use crate::nft::expression::{Base, ESTABLISHED, Family, Meta, NEW, RELATED, Rule, Tracked};
use crate::nft::table::{Chain, Hook, Table};
use crate::nft::{INET, NETDEV, hook, priority};

/// `vxlan_port` is the cluster's, when it is known: no container may pretend to be a node.
pub(crate) fn table(gateways: &[IpAddr], vxlan_port: Option<u16>) -> Table {
    let mut chains = class_chains(slot);
    chains.push(Chain::plain("find", Family::ALL.into_iter().map(find).collect()));
    let (pre, post) = (hook::PREROUTING, hook::POSTROUTING);
    chains.push(Chain::base("raw", "filter", pre, priority::RAW, first_rules()));
    chains.push(Chain::base("marks", "filter", pre, priority::MANGLE, mark_rules()));
    chains.push(Chain::base("pre", "nat", pre, priority::DESTINATION, before_rules()));
    let forward = forward_rules(vxlan_port);
    chains.push(Chain::base("forward", "filter", hook::FORWARD, priority::FILTER, forward));
    let mut after: Vec<Rule> =
        Family::ALL.into_iter().filter_map(|family| to_itself(family, gateways)).collect();
    after.push(Rule::new().in_links(link::TASK_PREFIX).out_link(link::UP).masquerade());
    chains.push(Chain::base("post", "nat", post, priority::SOURCE, after));
    Table::new(INET, OWN_TABLE, sets(), Vec::new(), chains)
}

fn sets() -> Vec<super::Set> {
    let mut sets = vec![
        members(set::OUTWARD, &[LINK_PART]),
        members(set::GUARDED, &[PROTOCOL_PART, PORT_PART]),
        members(set::NARROW, &[PROTOCOL_PART, PORT_PART]),
    ];
    for family in Family::ALL {
        let address = address_part(family);
        let port = [PROTOCOL_PART, PORT_PART];
        sets.push(classes(of(family, set::PUBLISHED4, set::PUBLISHED6), &port));
        sets.push(bytes(
            of(family, set::TARGET4, set::TARGET6),
            &[PROTOCOL_PART, PORT_PART, NUMBER_PART],
            &[address, PORT_PART],
        ));
        let bound = [address, PROTOCOL_PART, PORT_PART];
        sets.push(bytes(of(family, set::HELD4, set::HELD6), &bound, &[address, PORT_PART]));
        sets.push(members(of(family, set::OPEN4, set::OPEN6), &bound));
        let local = of(family, set::LOCAL4, set::LOCAL6);
        sets.push(members(local, &[address, PROTOCOL_PART, PORT_PART]));
        sets.push(members(of(family, set::SOURCE4, set::SOURCE6), &[LINK_PART, address]));
        sets.push(members(of(family, set::NODES4, set::NODES6), &[address]));
        sets.push(members(of(family, set::MANAGERS4, set::MANAGERS6), &[address]));
        sets.push(members(of(family, set::SELF4, set::SELF6), &[address, address]));
    }
    sets
}

fn slot(family: Family, class: u32) -> Rule {
    let port = family.registers();
    Rule::of(family)
        .service(0)
        .random(class, 2)
        .map(of(family, set::TARGET4, set::TARGET6), 0, 0)
        .lead_to(family, 0, Some(port))
}

fn find(family: Family) -> Rule {
    Rule::of(family).service(0).dispatch(of(family, set::PUBLISHED4, set::PUBLISHED6), 0)
}

/// Two connections of one client that came through two nodes differ by zone; nobody sends with
/// another's address.
fn first_rules() -> Vec<Rule> {
    let zone = Rule::new()
        .in_link(link::VXLAN)
        .load(Base::Link, SOURCE_HARDWARE + 4, 2, 0)
        .swap(0, 2)
        .set_original_zone(0);
    let own = Family::ALL.into_iter().map(|family| {
        Rule::of(family)
            .in_links(link::TASK_PREFIX)
            .meta(Meta::InLink, 0)
            .source(family, 4)
            .not_within(of(family, set::SOURCE4, set::SOURCE6), 0)
            .drop()
    });
    std::iter::once(zone).chain(own).collect()
}

fn mark_rules() -> Vec<Rule> {
    let remember = Rule::new()
        .in_link(link::VXLAN)
        .state(NEW)
        .load(Base::Link, SOURCE_HARDWARE + 2, 4, 0)
        .swap(0, 4)
        .set_tracked_mark(0);
    let back = Rule::new()
        .not_in_link(link::VXLAN)
        .tracked(Tracked::Direction, 0)
        .is(0, &[REPLY])
        .tracked(Tracked::Mark, 0)
        .mask(0, 1, &MARK_MASK.to_ne_bytes())
        .is(1, &MARK.to_ne_bytes())
        .set_mark(0);
    vec![remember, back]
}

/// What comes from the host is for a published port; so is what a task sends to a node's address.
/// Ports of single addresses come first.
fn before_rules() -> Vec<Rule> {
    let mut rules: Vec<Rule> = Family::ALL.into_iter().map(held).collect();
    rules.push(Rule::new().in_link(link::UP).for_here().jump("find"));
    rules.extend(Family::ALL.into_iter().map(|family| {
        Rule::of(family)
            .in_links(link::TASK_PREFIX)
            .destination(family, 0)
            .service(family.registers())
            .within(of(family, set::OPEN4, set::OPEN6), 0)
            .jump("find")
    }));
    rules.extend(Family::ALL.into_iter().map(|family| {
        Rule::of(family)
            .in_links(link::TASK_PREFIX)
            .destination(family, 0)
            .within(of(family, set::NODES4, set::NODES6), 0)
            .service(0)
            .not_within(set::NARROW, 0)
            .jump("find")
    }));
    rules
}

/// From the host it comes to the alias of its address, from tasks to the address itself.
fn held(family: Family) -> Rule {
    Rule::of(family)
        .not_in_link(link::VXLAN)
        .destination(family, 0)
        .service(family.registers())
        .map(of(family, set::HELD4, set::HELD6), 0, 0)
        .lead_to(family, 0, Some(family.registers()))
}

fn forward_rules(vxlan_port: Option<u16>) -> Vec<Rule> {
    let tasks = || Rule::new().in_links(link::TASK_PREFIX);
    let mut rules = vec![
        Rule::new().state(ESTABLISHED | RELATED).accept(),
        tasks().meta(Meta::InLink, 0).not_within(set::OUTWARD, 0).reject(),
        Rule::new().translated().accept(),
    ];
    rules.extend(Family::ALL.into_iter().map(|family| {
        Rule::of(family)
            .in_link(link::VXLAN)
            .destination(family, 0)
            .service(family.registers())
            .within(of(family, set::LOCAL4, set::LOCAL6), 0)
            .accept()
    }));
    for family in Family::ALL {
        let nodes = of(family, set::NODES4, set::NODES6);
        let managers = of(family, set::MANAGERS4, set::MANAGERS6);
        rules.extend([nodes, managers].map(|addresses| {
            Rule::of(family)
                .in_links(link::TASK_PREFIX)
                .destination(family, 0)
                .within(addresses, 0)
                .service(0)
                .within(set::GUARDED, 0)
                .reject()
        }));
    }
    if let Some(port) = vxlan_port {
        let port = port.to_be_bytes();
        rules.push(tasks().protocol(UDP).load(Base::Transport, 2, 2, 0).is(0, &port).reject());
    }
    rules.push(tasks().out_link(link::UP).accept());
    rules.push(tasks().reject());
    rules.push(Rule::new().drop());
    rules
}

/// Answers get the hardware address of the node that they go back through.
pub(crate) fn return_table() -> Table {
    let rule = Rule::new()
        .meta(Meta::Mark, 0)
        .mask(0, 1, &MARK_MASK.to_ne_bytes())
        .is(1, &MARK.to_ne_bytes())
        .swap(0, 4)
        .store(Base::Link, 2, 4, 0, None)
        .value(0, &[0; 4])
        .set_mark(0);
    let hook = Hook { kind: "filter", number: hook::EGRESS, priority: 0, link: Some(link::VXLAN) };
    let chain = Chain { name: "back".to_owned(), hook: Some(hook), rules: vec![rule] };
    Table::new(NETDEV, OWN_TABLE, Vec::new(), Vec::new(), vec![chain])
}

/// Offset of the source in a frame.
const SOURCE_HARDWARE: u32 = 6;
const REPLY: u8 = 1;

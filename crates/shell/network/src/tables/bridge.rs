//! The part of the host's table that is about bridges of the node's own networks.
//!
//! Owns: its rules. Does not know: which bridges there are; they are elements.
//! Invariant: from one bridge nothing comes to another, nor to what the mesh's containers must not
//! reach; what did not ask is not let in from outside, and an internal network has no outside.

use netplan::set;

use super::{LINK_PART, PORT_PART, PROTOCOL_PART, Set, UDP, address_part, members, of};
use crate::nft::expression::{Base, ESTABLISHED, Family, Meta, RELATED, Rule};
use crate::nft::table::Chain;
use crate::nft::{hook, priority};

pub(super) fn sets() -> Vec<Set> {
    let mut sets = vec![
        members(set::BRIDGES, &[LINK_PART]),
        members(set::CLOSED, &[LINK_PART]),
        members(set::MASKED, &[LINK_PART]),
        members(set::WITHIN, &[LINK_PART, LINK_PART]),
        members(set::GUARDED, &[PROTOCOL_PART, PORT_PART]),
    ];
    for family in Family::ALL {
        let address = address_part(family);
        sets.push(members(of(family, set::NODES4, set::NODES6), &[address]));
        sets.push(members(of(family, set::MANAGERS4, set::MANAGERS6), &[address]));
    }
    sets
}

/// `gateway` is the host's end of its link to the mesh. What has to do with no bridge is looked at
/// twice and no more.
pub(super) fn chains(gateway: &str, vxlan_port: Option<u16>) -> Vec<Chain> {
    let filter = |name, number, rules| Chain::base(name, "filter", number, priority::FILTER, rules);
    let from_bridge = || coming(set::BRIDGES).jump(FROM_BRIDGE);
    let to_bridge = going(set::BRIDGES).jump(TO_BRIDGE);
    vec![
        Chain::plain(FROM_BRIDGE, from_rules(gateway, vxlan_port)),
        Chain::plain(TO_BRIDGE, to_rules()),
        filter("forward", hook::FORWARD, vec![from_bridge(), to_bridge]),
        filter("input", hook::INPUT, input_rules(vxlan_port)),
    ]
}

/// What comes from a bridge, or goes to one.
fn coming(set: &str) -> Rule {
    Rule::new().meta(Meta::InLink, 0).within(set, 0)
}

fn going(set: &str) -> Rule {
    Rule::new().meta(Meta::OutLink, 0).within(set, 0)
}

fn vxlan(rule: Rule, port: u16) -> Rule {
    rule.protocol(UDP).load(Base::Transport, 2, 2, 0).is(0, &port.to_be_bytes())
}

/// On its way from a bridge, to wherever.
fn from_rules(gateway: &str, vxlan_port: Option<u16>) -> Vec<Rule> {
    let within =
        Rule::new().meta(Meta::InLink, 0).meta(Meta::OutLink, 4).within(set::WITHIN, 0).accept();
    let mut rules = vec![within, going(set::BRIDGES).drop(), coming(set::CLOSED).reject()];
    for family in Family::ALL {
        let nodes = of(family, set::NODES4, set::NODES6);
        let managers = of(family, set::MANAGERS4, set::MANAGERS6);
        rules.extend([nodes, managers].map(|addresses| {
            Rule::of(family)
                .not_out_link(gateway)
                .destination(family, 0)
                .within(addresses, 0)
                .service(0)
                .within(set::GUARDED, 0)
                .reject()
        }));
    }
    rules.extend(vxlan_port.map(|port| vxlan(Rule::new(), port).reject()));
    rules
}

/// On its way to a bridge, from elsewhere.
fn to_rules() -> Vec<Rule> {
    vec![
        going(set::CLOSED).drop(),
        Rule::new().state(ESTABLISHED | RELATED).accept(),
        Rule::new().drop(),
    ]
}

/// The node's own ports that are no container's business.
fn input_rules(vxlan_port: Option<u16>) -> Vec<Rule> {
    let mut rules = vec![coming(set::BRIDGES).service(0).within(set::GUARDED, 0).reject()];
    rules.extend(vxlan_port.map(|port| vxlan(coming(set::BRIDGES), port).reject()));
    rules
}

const FROM_BRIDGE: &str = "from_bridge";
const TO_BRIDGE: &str = "to_bridge";

/// Published ports see the container itself: they are reached by way of the mesh.
pub(super) fn masquerade(gateway: &str) -> Rule {
    coming(set::MASKED)
        .meta(Meta::InLink, 0)
        .meta(Meta::OutLink, 4)
        .not_within(set::WITHIN, 0)
        .not_out_link(gateway)
        .masquerade()
}

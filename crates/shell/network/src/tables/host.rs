//! The host's table: what comes to published ports, what tasks send out, what VXLAN may bring.
//!
//! Owns: its rules. Does not know: services, containers.
//! Invariant: packets that have nothing to do with us pass without a verdict.

use netplan::{MeshLinks, set};

use super::bridge;
use super::{
    NUMBER_PART, PORT_PART, PROTOCOL_PART, SCTP, TCP, UDP, address_part, bytes, members, of, seen,
};
use crate::nft::expression::{Base, Family, Rule};
use crate::nft::table::{Chain, Table, TimeOuts};
use crate::nft::{INET, hook, priority};

/// What the rules are made of.
#[derive(Clone, Debug)]
pub(crate) struct HostTable<'a> {
    pub(crate) name: &'a str,
    /// The host's end of its link to the mesh.
    pub(crate) gateway: &'a str,
    pub(crate) links: MeshLinks,
    /// The cluster's, when it is known.
    pub(crate) vxlan_port: Option<u16>,
    /// The kernel has objects for time-outs.
    pub(crate) time_outs: bool,
}

impl HostTable<'_> {
    pub(crate) fn table(&self) -> Table {
        let sets = Family::ALL.into_iter().flat_map(|family| {
            let address = address_part(family);
            let bound = of(family, set::BOUND4, set::BOUND6);
            let sources = of(family, set::MEMBERS4, set::MEMBERS6);
            [
                bytes(bound, &[address, PROTOCOL_PART, PORT_PART], &[address]),
                members(sources, &[address, NUMBER_PART]),
                seen(of(family, STRANGERS4, STRANGERS6), &[address, NUMBER_PART]),
            ]
        });
        let mut sets: Vec<super::Set> = sets.collect();
        sets.push(members(set::PORTS, &[PROTOCOL_PART, PORT_PART]));
        sets.push(members(set::VNIS, &[NUMBER_PART]));
        sets.push(members(set::SEALED, &[NUMBER_PART]));
        let (pre, out) = (hook::PREROUTING, hook::OUTPUT);
        let mut chains = vec![
            Chain::plain("publish", self.publish_rules()),
            Chain::plain("bound", self.bound_rules()),
            Chain::plain("foreign", foreign_rules(None)),
            Chain::plain("clear", foreign_rules(Some(CLEAR_IN))),
            Chain::base("first", "filter", pre, priority::FIRST, self.first_rules()),
            Chain::base("sent", "filter", out, priority::FIRST, self.sent_rules()),
            Chain::base("pre", "nat", pre, priority::DESTINATION, published_rules()),
            Chain::base("out", "nat", out, priority::DESTINATION, self.own_rules()),
            Chain::base("post", "nat", hook::POSTROUTING, priority::SOURCE, self.post_rules()),
        ];
        sets.extend(bridge::sets());
        chains.extend(bridge::chains(self.gateway, self.vxlan_port));
        let time_outs = if self.time_outs { TIME_OUTS.to_vec() } else { Vec::new() };
        Table::new(INET, self.name, sets, time_outs, chains).counting(&[CLEAR_IN, CLEAR_OUT])
    }

    fn first_rules(&self) -> Vec<Rule> {
        // Nobody at our link may come to what listens on the loopback only.
        let loopback = Rule::of(Family::V4)
            .in_link(self.gateway)
            .destination(Family::V4, 0)
            .mask(0, 0, &[255, 0, 0, 0])
            .is(0, &[127, 0, 0, 0])
            .drop();
        let mut rules = vec![loopback];
        if let Some(port) = self.vxlan_port {
            rules.push(sealed(port).jump("clear"));
            rules.extend(Family::ALL.into_iter().map(|family| foreign(family, port)));
        }
        rules.extend(self.untracked_rules());
        rules
    }

    /// What would leave unencrypted does not leave at all.
    fn sent_rules(&self) -> Vec<Rule> {
        let sealed = self.vxlan_port.map(|port| sealed(port).count(CLEAR_OUT).drop());
        sealed.into_iter().chain(self.untracked_rules()).collect()
    }

    fn untracked_rules(&self) -> Vec<Rule> {
        let port = self.vxlan_port;
        let rule = |port: u16| vxlan(Rule::new(), port).untracked();
        port.into_iter().map(rule).collect()
    }

    /// To the mesh, with the client's address.
    fn publish_rules(&self) -> Vec<Rule> {
        let mut rules = self.time_out_rules(Rule::new);
        let (v4, v6) = (self.links.mesh_v4().octets(), self.links.mesh_v6().octets());
        rules.push(Rule::of(Family::V4).value(0, &v4).lead_to(Family::V4, 0, None));
        rules.push(Rule::of(Family::V6).value(0, &v6).lead_to(Family::V6, 0, None));
        rules
    }

    /// Where an address of the host has a port for itself.
    fn bound_rules(&self) -> Vec<Rule> {
        let found = |family: Family, rule: Rule| {
            let rule = rule.destination(family, 0).service(family.registers());
            rule.map(of(family, set::BOUND4, set::BOUND6), 0, 0)
        };
        let lead = |family: Family| {
            let about = move || Rule::of(family);
            if !self.time_outs {
                return vec![found(family, about()).lead_to(family, 0, None)];
            }
            let rule = |object: &TimeOuts| {
                let rule = found(family, about().protocol(object.protocol));
                rule.time_outs(object.name).lead_to(family, 0, None)
            };
            TIME_OUTS.iter().map(rule).collect()
        };
        Family::ALL.into_iter().flat_map(lead).collect()
    }

    fn time_out_rules(&self, about: impl Fn() -> Rule) -> Vec<Rule> {
        if !self.time_outs {
            return Vec::new();
        }
        let rule = |object: &TimeOuts| about().protocol(object.protocol).time_outs(object.name);
        TIME_OUTS.iter().map(rule).collect()
    }

    /// From the node itself. IPv6 cannot leave the loopback, so ::1 is somebody else's matter.
    fn own_rules(&self) -> Vec<Rule> {
        let mut localhost = [0; 16];
        localhost[15] = 1;
        let mut rules =
            vec![Rule::of(Family::V6).destination(Family::V6, 0).is(0, &localhost).leave()];
        rules.extend(published_rules());
        rules
    }

    fn post_rules(&self) -> Vec<Rule> {
        let outwards = || Rule::new().in_link(self.gateway).not_out_link(self.gateway);
        let mut rules = vec![
            Rule::of(Family::V4)
                .out_link(self.gateway)
                .source(Family::V4, 0)
                .mask(0, 0, &[255, 0, 0, 0])
                .is(0, &[127, 0, 0, 0])
                .masquerade(),
        ];
        rules.extend(self.time_out_rules(outwards));
        rules.push(outwards().masquerade());
        rules.push(bridge::masquerade(self.gateway));
        rules
    }
}

fn published_rules() -> Vec<Rule> {
    vec![
        Rule::new().for_here().service(0).within(set::PORTS, 0).jump("publish"),
        Rule::new().for_here().jump("bound"),
    ]
}

/// What comes with an identifier of ours from somebody who is not on that network.
fn foreign(family: Family, port: u16) -> Rule {
    let vni = family.registers();
    vxlan(Rule::of(family), port)
        .load(Base::Transport, 8 + 4, 3, vni)
        .within(set::VNIS, vni)
        .source(family, 0)
        .not_within(of(family, set::MEMBERS4, set::MEMBERS6), 0)
        .jump("foreign")
}

/// What has the identifier of an encrypted network and is not encrypted itself.
fn sealed(port: u16) -> Rule {
    vxlan(Rule::new(), port).load(Base::Transport, 8 + 4, 3, 0).within(set::SEALED, 0)
}

/// Who that is is remembered for a while: a peer behind an address that nobody expects is named by
/// it.
fn foreign_rules(counter: Option<&str>) -> Vec<Rule> {
    let remember = |family: Family| {
        let rule = Rule::of(family).source(family, 0);
        let rule = rule.load(Base::Transport, 8 + 4, 3, family.registers());
        rule.remember(of(family, STRANGERS4, STRANGERS6), 0)
    };
    let last = counter.map_or_else(Rule::new, |counter| Rule::new().count(counter)).drop();
    Family::ALL.into_iter().map(remember).chain([last]).collect()
}

/// Packets of encrypted networks that were not encrypted: dropped on their way in, and out.
pub(crate) const CLEAR_IN: &str = "clear_in";
pub(crate) const CLEAR_OUT: &str = "clear_out";

/// Sources of packets that were dropped, with the number of the network.
pub(crate) const STRANGERS4: &str = "foreign4";
pub(crate) const STRANGERS6: &str = "foreign6";

fn vxlan(rule: Rule, port: u16) -> Rule {
    rule.protocol(UDP).load(Base::Transport, 2, 2, 0).is(0, &port.to_be_bytes())
}

/// Established connections last for days, whatever the host's own are worth to it; closed ones are
/// forgotten soon.
const TIME_OUTS: &[TimeOuts] = &[
    TimeOuts {
        name: "tcp",
        protocol: TCP,
        seconds: &[
            (1, 120),
            (2, 60),
            (3, 432_000),
            (4, 120),
            (5, 3_600),
            (6, 30),
            (7, 30),
            (8, 10),
            (9, 120),
            (10, 300),
            (11, 300),
        ],
    },
    TimeOuts { name: "udp", protocol: UDP, seconds: &[(1, 30), (2, 180)] },
    TimeOuts {
        name: "sctp",
        protocol: SCTP,
        seconds: &[(1, 10), (2, 3), (3, 3), (4, 432_000), (5, 3), (6, 3), (7, 3), (8, 30)],
    },
];

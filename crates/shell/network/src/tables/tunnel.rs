//! The table of the tunnel's namespace: who may send what.
//!
//! Owns: its rules. Does not know: peers, networks; they are elements.
//! Invariant: nothing comes out of the tunnel but VXLAN, from a node on the network whose
//! identifier it has.

use netplan::{link, set};

use super::{NUMBER_PART, OWN_TABLE, UDP, address_part, members};
use crate::nft::expression::{Base, Family, Rule};
use crate::nft::table::{Chain, Table};
use crate::nft::{INET, hook, priority};

/// `vxlan_port` is the cluster's.
pub(crate) fn table(vxlan_port: u16) -> Table {
    let family = Family::V4;
    let sets = vec![members(set::MEMBERS4, &[address_part(family), NUMBER_PART])];
    let member = Rule::of(family)
        .protocol(UDP)
        .load(Base::Transport, 2, 2, 0)
        .is(0, &vxlan_port.to_be_bytes())
        .source(family, 0)
        .load(Base::Transport, 8 + 4, 3, family.registers())
        .within(set::MEMBERS4, 0);
    // What this namespace says to itself, as errors.
    let own = Rule::new().in_link(link::LOOPBACK);
    let rules = vec![own.accept(), member.accept(), Rule::new().count(STRANGE).drop()];
    let chains = vec![Chain::base("raw", "filter", hook::PREROUTING, priority::RAW, rules)];
    Table::new(INET, OWN_TABLE, sets, Vec::new(), chains).counting(&[STRANGE])
}

/// Packets of true peers that they had no business to send.
pub(crate) const STRANGE: &str = "strange";

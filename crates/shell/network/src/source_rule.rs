//! Rules that lead packets of one source address to a routing table of their own.
//!
//! Owns: their messages, and reading them back.
//! Does not know: which addresses there are.
//! Invariant: only rules with one of our two places in the order are ours.

use std::io;
use std::net::IpAddr;

use crate::netlink::{CREATE, EXCLUSIVE, Message, attribute};
use crate::route::{
    FR_ACT_TO_TABLE, FRA_PRIORITY, FRA_TABLE, RouteSocket, family_of, number, octets, parse_ip,
    rule_header,
};

/// Packets from one address are routed by a table of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SourceRule {
    pub(crate) source: IpAddr,
    pub(crate) table: u32,
    pub(crate) order: Order,
}

/// When a rule is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    /// Instead of the main table.
    Before = 10_000,
    /// Only for what the main table has no route for.
    After = 40_000,
}

impl RouteSocket {
    /// Rules of ours about source addresses of one family.
    pub(crate) fn source_rules(&mut self, family: u8) -> io::Result<Vec<SourceRule>> {
        let header = rule_header(family, 0);
        let answers = self.dump(Message::new(libc::RTM_GETRULE, 0, &header))?;
        Ok(answers.iter().filter_map(|answer| parse_source_rule(answer)).collect())
    }
}

pub(crate) fn add_source_rule(rule: &SourceRule) -> Message {
    source_rule(libc::RTM_NEWRULE, CREATE | EXCLUSIVE, rule)
}

pub(crate) fn delete_source_rule(rule: &SourceRule) -> Message {
    source_rule(libc::RTM_DELRULE, 0, rule)
}

fn source_rule(kind: u16, flags: u16, rule: &SourceRule) -> Message {
    let bytes = octets(rule.source);
    let mut header = rule_header(family_of(rule.source), FR_ACT_TO_TABLE);
    header[2] = (bytes.len() * 8) as u8;
    Message::new(kind, flags, &header)
        .bytes(FRA_SRC, &bytes)
        .number(FRA_TABLE, rule.table)
        .number(FRA_PRIORITY, rule.order as u32)
}

fn parse_source_rule(answer: &[u8]) -> Option<SourceRule> {
    let rest = answer.get(12..)?;
    let part = |kind| number(attribute(rest, kind));
    let priority = part(FRA_PRIORITY)?;
    let order = [Order::Before, Order::After].into_iter().find(|o| *o as u32 == priority)?;
    Some(SourceRule {
        source: parse_ip(attribute(rest, FRA_SRC)?)?,
        table: part(FRA_TABLE)?,
        order,
    })
}

const FRA_SRC: u16 = 2;

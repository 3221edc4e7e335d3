//! Rules in chains of others.
//!
//! Owns: reading and writing them, one by one.
//! Does not know: which chains, and why.
//! Invariant: a rule of ours says so in its comment, and no other is ever removed.

use std::io;

use super::expression::Rule;
use super::table::{BaseChain, NftSocket};
use super::{INET, hook};
use crate::netlink::{APPEND, CREATE, Message, attribute, attributes};

/// One rule of somebody's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForeignRule {
    pub(crate) handle: u64,
    /// Empty: none.
    pub(crate) comment: String,
    /// It drops or rejects whatever comes to it.
    pub(crate) ends: bool,
}

/// Where a rule of ours is put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Foreign<'a> {
    pub(crate) chain: &'a BaseChain,
    pub(crate) comment: &'a str,
    /// `None`: at the end.
    pub(crate) before: Option<u64>,
}

impl NftSocket {
    pub(crate) fn foreign_rules(&mut self, chain: &BaseChain) -> io::Result<Vec<ForeignRule>> {
        let answers = self.raw().dump(about(chain, GET_RULE, 0))?;
        Ok(answers.iter().filter_map(|answer| parse(answer)).collect())
    }

    pub(crate) fn add_foreign(&mut self, place: &Foreign<'_>, rule: &Rule) -> io::Result<()> {
        let text = place.comment.as_bytes();
        let mut comment = vec![COMMENT, text.len() as u8 + 1];
        comment.extend(text);
        comment.push(0);
        let message = match place.before {
            Some(handle) => {
                about(place.chain, NEW_RULE, CREATE).bytes(RULE_POSITION, &handle.to_be_bytes())
            }
            None => about(place.chain, NEW_RULE, CREATE | APPEND),
        };
        let message = message.nested(RULE_EXPRESSIONS, |list| list.raw(rule.as_bytes()));
        self.commit(vec![message.bytes(RULE_USER_DATA, &comment)])
    }

    pub(crate) fn delete_foreign(&mut self, chain: &BaseChain, handle: u64) -> io::Result<()> {
        let message = about(chain, DELETE_RULE, 0).bytes(RULE_HANDLE, &handle.to_be_bytes());
        match self.commit(vec![message]) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// An empty chain before all that filter what is forwarded, in a table of the same name.
    pub(crate) fn make_user_chain(&mut self, name: &str) -> io::Result<()> {
        let message = |kind| Message::new(SUBSYSTEM << 8 | kind, CREATE, &[INET, 0, 0, 0]);
        let chain = message(NEW_CHAIN)
            .text(1, name)
            .text(3, name)
            .nested(4, |data| data.number_be(1, hook::FORWARD).number_be(2, USER_PRIORITY as u32));
        self.commit(vec![message(NEW_TABLE).text(1, name), chain.text(7, "filter")])
    }
}

fn about(chain: &BaseChain, kind: u16, flags: u16) -> Message {
    let message = Message::new(SUBSYSTEM << 8 | kind, flags, &[chain.family, 0, 0, 0]);
    message.text(1, &chain.table).text(2, &chain.name)
}

fn parse(answer: &[u8]) -> Option<ForeignRule> {
    let rest = answer.get(4..)?;
    let handle = u64::from_be_bytes(*attribute(rest, RULE_HANDLE)?.first_chunk()?);
    let list = attribute(rest, RULE_EXPRESSIONS).unwrap_or_default();
    Some(ForeignRule {
        handle,
        comment: attribute(rest, RULE_USER_DATA).and_then(parse_comment).unwrap_or_default(),
        ends: ends(list),
    })
}

/// Kind, length and value, one after another.
fn parse_comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let (value, tail) = rest.split_at_checked(usize::from(*length))?;
        if *kind == COMMENT {
            let text = value.strip_suffix(b"\0").unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        data = tail;
    }
    None
}

/// Whether nothing goes beyond a rule of these expressions: it asks nothing, and drops or rejects.
fn ends(list: &[u8]) -> bool {
    let mut ended = false;
    for (_, expression) in attributes(list) {
        let name = attribute(expression, 1).unwrap_or_default();
        match name.strip_suffix(b"\0").unwrap_or(name) {
            b"counter" | b"log" => {}
            b"reject" => ended = true,
            b"immediate" => {
                let data = attribute(expression, 2).unwrap_or_default();
                let verdict = attribute(data, 2).and_then(|value| attribute(value, 2));
                let code = verdict.and_then(|verdict| attribute(verdict, 1));
                if code != Some(&DROP) {
                    return false;
                }
                ended = true;
            }
            _ => return false,
        }
    }
    ended
}

const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_POSITION: u16 = 6;
const RULE_USER_DATA: u16 = 7;
const COMMENT: u8 = 0;
const DROP: [u8; 4] = [0; 4];

/// Before those that an administrator's other tools make.
const USER_PRIORITY: i32 = -10;

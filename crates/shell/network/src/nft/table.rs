//! A table: its constant part, and its elements.
//!
//! Owns: making a table in one transaction, reading it back, editing elements in batches.
//! Does not know: what a table is for.
//! Invariant: the constant part of a table is whole or not there at all; its elements are replaced
//! by transactions of which a packet sees all or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use netplan::{Bytes, Edit, Elements, Value};

use super::expression::{
    self, GOTO, OBJECT_COUNTER, OBJECT_TIME_OUT, Rule, VALUE, VERDICT, verdict,
};
use super::kind;
use crate::netlink::{APPEND, Answer, CREATE, EXCLUSIVE, Message, Socket, attribute, attributes};

/// The constant part of a table.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) family: u8,
    pub(crate) name: String,
    pub(crate) sets: Vec<Set>,
    pub(crate) time_outs: Vec<TimeOuts>,
    /// Of packets; they stand beside the rules, which are compared as they are.
    pub(crate) counters: &'static [&'static str],
    pub(crate) chains: Vec<Chain>,
    /// Of everything constant; stands in the table itself, for other daemons to see.
    identity: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    /// As nft prints keys; six bits a part.
    pub(crate) key_type: u32,
    pub(crate) key_bytes: u32,
    pub(crate) holds: Holds,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Holds {
    Members,
    /// Members that rules put in, and that are forgotten some time later.
    Seen,
    Bytes {
        data_type: u32,
        bytes: u32,
    },
    /// Numbers of classes, as the mark of a packet has them.
    Numbers,
    /// Ways to the chains of classes, or of slots.
    Classes,
    Slots,
}

/// How long connections are remembered that take part in no packet.
#[derive(Clone, Debug)]
pub(crate) struct TimeOuts {
    pub(crate) name: &'static str,
    pub(crate) protocol: u8,
    /// Seconds by the kernel's number of the state.
    pub(crate) seconds: &'static [(u16, u32)],
}

#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) name: String,
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
pub(crate) struct Hook {
    pub(crate) kind: &'static str,
    pub(crate) number: u32,
    pub(crate) priority: i32,
    pub(crate) link: Option<&'static str>,
}

/// What is found in the kernel of the constant part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    /// A table of this name, made by another build, or by hand.
    Other,
    /// One that says that it is this; its rules are as the print says.
    This(u64),
}

/// nftables in one network namespace.
#[derive(Debug)]
pub(crate) struct NftSocket(Socket);

impl Chain {
    pub(crate) fn base(
        name: &str,
        kind: &'static str,
        number: u32,
        priority: i32,
        rules: Vec<Rule>,
    ) -> Self {
        let hook = Some(Hook { kind, number, priority, link: None });
        Self { name: name.to_owned(), hook, rules }
    }

    pub(crate) fn plain(name: &str, rules: Vec<Rule>) -> Self {
        Self { name: name.to_owned(), hook: None, rules }
    }
}

impl Table {
    pub(crate) fn new(
        family: u8,
        name: &str,
        sets: Vec<Set>,
        time_outs: Vec<TimeOuts>,
        chains: Vec<Chain>,
    ) -> Self {
        let mut hasher = DefaultHasher::new();
        format!("{family} {sets:?} {time_outs:?} {chains:?}").hash(&mut hasher);
        let identity = hasher.finish();
        Self { family, name: name.to_owned(), sets, time_outs, counters: &[], chains, identity }
    }

    /// With counters that its rules count with.
    pub(crate) fn counting(mut self, counters: &'static [&'static str]) -> Self {
        let mut hasher = DefaultHasher::new();
        (self.identity, counters).hash(&mut hasher);
        (self.identity, self.counters) = (hasher.finish(), counters);
        self
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        message(kind, flags, self.family)
    }

    fn table(&self, kind: u16, flags: u16) -> Message {
        let message = self.message(kind, flags).text(1, &self.name);
        match kind {
            NEW_TABLE => message.bytes(TABLE_USER_DATA, &self.identity.to_be_bytes()),
            _ => message,
        }
    }

    /// Messages that make it where there is none.
    fn creation(&self) -> Vec<Message> {
        let mut all = vec![self.table(NEW_TABLE, CREATE | EXCLUSIVE)];
        for (number, set) in (1..).zip(&self.sets) {
            all.push(self.set_message(number, set));
        }
        all.extend(self.time_outs.iter().map(|object| self.time_outs_message(object)));
        all.extend(self.counters.iter().map(|name| self.counter_message(name)));
        all.extend(self.chains.iter().map(|chain| self.chain_message(chain)));
        for chain in &self.chains {
            all.extend(chain.rules.iter().map(|rule| {
                let message = self
                    .message(NEW_RULE, CREATE | APPEND)
                    .text(1, &self.name)
                    .text(2, &chain.name)
                    .nested(4, |list| list.raw(rule.as_bytes()));
                match rule.user_data() {
                    Some(data) => message.bytes(RULE_USER_DATA, &data),
                    None => message,
                }
            }));
        }
        all
    }

    fn set_message(&self, number: u32, set: &Set) -> Message {
        let flags = match set.holds {
            Holds::Members => 0,
            Holds::Seen => SET_FORGETS | SET_IS_WRITTEN,
            Holds::Bytes { .. } | Holds::Numbers | Holds::Classes | Holds::Slots => SET_IS_MAP,
        };
        let message = self
            .message(NEW_SET, CREATE)
            .text(1, &self.name)
            .text(2, set.name)
            .number_be(3, flags)
            .number_be(4, set.key_type)
            .number_be(5, set.key_bytes)
            .number_be(10, number);
        match set.holds {
            Holds::Members => message,
            Holds::Seen => message
                .nested(9, |data| data.number_be(1, SEEN_MAX))
                .bytes(11, &SEEN_MILLIS.to_be_bytes()),
            Holds::Bytes { data_type, bytes } => {
                message.number_be(6, data_type).number_be(7, bytes)
            }
            Holds::Numbers => message.number_be(6, kind::NUMBER).number_be(7, 4),
            Holds::Classes | Holds::Slots => message.number_be(6, VERDICT_TYPE).number_be(7, 0),
        }
    }

    fn time_outs_message(&self, object: &TimeOuts) -> Message {
        self.message(NEW_OBJECT, CREATE)
            .text(1, &self.name)
            .text(2, object.name)
            .number_be(3, OBJECT_TIME_OUT)
            .nested(4, |data| {
                data.bytes(1, &2u16.to_be_bytes()).bytes(2, &[object.protocol]).nested(3, |data| {
                    object
                        .seconds
                        .iter()
                        .fold(data, |data, (state, seconds)| data.number_be(*state, *seconds))
                })
            })
    }

    fn counter_message(&self, name: &str) -> Message {
        self.message(NEW_OBJECT, CREATE)
            .text(1, &self.name)
            .text(2, name)
            .number_be(3, OBJECT_COUNTER)
            .nested(4, |data| data)
    }

    fn chain_message(&self, chain: &Chain) -> Message {
        let message = self.message(NEW_CHAIN, CREATE).text(1, &self.name).text(3, &chain.name);
        let Some(hook) = &chain.hook else { return message };
        message
            .nested(4, |data| {
                let data = data.number_be(1, hook.number).number_be(2, hook.priority as u32);
                match hook.link {
                    Some(link) => data.text(3, link),
                    None => data,
                }
            })
            .text(7, hook.kind)
    }

    /// Messages for edits, in their order; neighbours of one kind and set share a message.
    fn edits(&self, edits: &[Edit]) -> Vec<Message> {
        let mut all = Vec::new();
        let mut rest = edits;
        while let Some(first) = rest.first() {
            let (set, kind) = (set_of(first), std::mem::discriminant(first));
            let same = rest
                .iter()
                .take(ELEMENTS_PER_MESSAGE)
                .take_while(|edit| set_of(edit) == set && std::mem::discriminant(*edit) == kind)
                .count();
            let (group, tail) = rest.split_at(same);
            rest = tail;
            if !matches!(first, Edit::Put { .. }) {
                all.push(self.elements(DELETE_ELEMENT, 0, set, group));
            }
            if !matches!(first, Edit::Delete { .. }) {
                all.push(self.elements(NEW_ELEMENT, CREATE, set, group));
            }
        }
        all
    }

    fn holds(&self, set: &str) -> Option<Holds> {
        self.sets.iter().find(|one| one.name == set).map(|one| one.holds)
    }

    fn elements(&self, kind: u16, flags: u16, set: &str, edits: &[Edit]) -> Message {
        let holds = self.holds(set);
        let message = self.message(kind, flags).room(edits.len() * ELEMENT_BYTES);
        message.text(1, &self.name).text(2, set).nested(3, |list| {
            edits.iter().fold(list, |list, edit| {
                list.nested(expression::LIST_ELEMENT, |element| {
                    let (key, value) = match edit {
                        Edit::Put { key, value, .. } | Edit::Replace { key, value, .. } => {
                            (key, value)
                        }
                        Edit::Delete { key, .. } => (key, &Value::Member),
                    };
                    let element = element.nested(1, |data| data.bytes(VALUE, key));
                    match value {
                        _ if kind == DELETE_ELEMENT => element,
                        Value::Member => element,
                        Value::Bytes(bytes) => element.nested(2, |data| data.bytes(VALUE, bytes)),
                        Value::Class(class) => element.nested(2, |data| match holds {
                            Some(Holds::Numbers) => data.bytes(VALUE, &class.to_ne_bytes()),
                            Some(Holds::Slots) => verdict(data, GOTO, Some(&slot_chain(*class))),
                            _ => verdict(data, GOTO, Some(&class_chain(*class))),
                        }),
                    }
                })
            })
        })
    }
}

impl NftSocket {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(Socket::open(libc::NETLINK_NETFILTER)?))
    }

    /// For what else nftables is asked.
    pub(crate) fn raw(&mut self) -> &mut Socket {
        &mut self.0
    }

    /// Grows with every transaction of anybody in the namespace.
    pub(crate) fn generation(&mut self) -> io::Result<u32> {
        let answer = self.0.ask(message(GET_GENERATION, 0, 0))?;
        let id = answer.get(4..).and_then(|rest| attribute(rest, 1));
        Ok(id.and_then(|bytes| bytes.first_chunk().copied()).map_or(0, u32::from_be_bytes))
    }

    /// Makes the table, or makes it anew in one transaction; answers its print.
    pub(crate) fn install(&mut self, table: &Table, elements: &[Edit]) -> io::Result<u64> {
        if self.is_there(table)? {
            // A packet sees one or the other.
            let mut messages = vec![table.table(DELETE_TABLE, 0)];
            messages.extend(table.creation());
            messages.extend(table.edits(elements));
            self.commit(messages)?;
        } else {
            // Without a removal: the kernel waits for the end of one when the socket is closed.
            self.commit(table.creation())?;
            self.edit(table, elements, UNKNOWN)?;
        }
        match self.find(table)? {
            Found::This(print) => Ok(print),
            Found::Nothing | Found::Other => {
                Err(io::Error::other(format!("the table {} vanished", table.name)))
            }
        }
    }

    /// Carries out edits: few are one transaction, very many several. `generation` is that of the
    /// last look; answers the one that the edits leave, or [`UNKNOWN`] when somebody else changed
    /// something since then.
    pub(crate) fn edit(
        &mut self,
        table: &Table,
        edits: &[Edit],
        generation: u32,
    ) -> io::Result<u32> {
        let mut known = generation;
        for part in edits.chunks(EDITS_PER_TRANSACTION) {
            // The kernel compares: one that is another's does not begin.
            match self.transact(table.edits(part), known) {
                Err(error) if known != UNKNOWN && error.raw_os_error() == Some(libc::ERESTART) => {
                    known = UNKNOWN;
                    self.commit(table.edits(part))?;
                }
                result => result?,
            }
            known = after(known);
        }
        Ok(known)
    }

    pub(crate) fn remove(&mut self, family: u8, name: &str) -> io::Result<()> {
        let table = |kind, flags| message(kind, flags, family).text(1, name);
        // Making it first makes the removal succeed in any case.
        self.commit(vec![table(NEW_TABLE, CREATE), table(DELETE_TABLE, 0)])
    }

    /// Removes every table of everybody.
    #[cfg(test)]
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.commit(vec![message(DELETE_TABLE, 0, 0)])
    }

    pub(super) fn commit(&mut self, messages: Vec<Message>) -> io::Result<()> {
        self.transact(messages, UNKNOWN)
    }

    fn transact(&mut self, messages: Vec<Message>, generation: u32) -> io::Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        let begin = match generation {
            UNKNOWN => mark(BATCH_BEGIN),
            generation => mark(BATCH_BEGIN).number_be(BATCH_GENERATION, generation),
        };
        self.0.transaction(begin, messages, mark(BATCH_END))
    }

    /// Whether there is a set of this name, whoever made it.
    pub(crate) fn has_set(&mut self, family: u8, table: &str, set: &str) -> io::Result<bool> {
        match self.0.ask(message(GET_SET, 0, family).text(1, table).text(2, set)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether there is a table of this name, whoever made it.
    pub(crate) fn is_there(&mut self, table: &Table) -> io::Result<bool> {
        Ok(self.head(table)?.is_some())
    }

    /// What the kernel says of the table alone; `None`: there is none.
    fn head(&mut self, table: &Table) -> io::Result<Option<Answer>> {
        match self.0.ask(table.table(GET_TABLE, 0)) {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks at the constant part.
    pub(crate) fn find(&mut self, table: &Table) -> io::Result<Found> {
        let Some(answer) = self.head(table)? else { return Ok(Found::Nothing) };
        let said = answer.get(4..).and_then(|rest| attribute(rest, TABLE_USER_DATA));
        if said != Some(&table.identity.to_be_bytes()) {
            return Ok(Found::Other);
        }
        let (sets, chains, rules) = (self.sets(table)?, self.chains(table)?, self.rules(table)?);
        let wanted: BTreeSet<&str> = table.sets.iter().map(|set| set.name).collect();
        let named: BTreeSet<&str> = table.chains.iter().map(|chain| chain.name.as_str()).collect();
        let rules_wanted: usize = table.chains.iter().map(|chain| chain.rules.len()).sum();
        let hooked = table.chains.iter().filter(|chain| chain.hook.is_some()).count();
        let whole = wanted.iter().all(|name| sets.contains(*name))
            && named.iter().all(|name| chains.iter().any(|(chain, ..)| chain == name))
            && chains.iter().filter(|(.., hook)| *hook).count() == hooked
            && rules.len() == rules_wanted;
        if !whole {
            return Ok(Found::Other);
        }
        let mut hasher = DefaultHasher::new();
        rules.hash(&mut hasher);
        Ok(Found::This(hasher.finish()))
    }

    fn sets(&mut self, table: &Table) -> io::Result<BTreeSet<String>> {
        let answers = self.0.dump(table.message(GET_SET, 0).text(1, &table.name))?;
        Ok(answers.iter().filter_map(|answer| text(answer.get(4..)?, 2)).collect())
    }

    /// Name, and whether it has a hook.
    fn chains(&mut self, table: &Table) -> io::Result<Vec<(String, bool)>> {
        let answers = self.0.dump(table.message(GET_CHAIN, 0))?;
        let ours = answers.iter().filter_map(|answer| {
            let rest = answer.get(4..)?;
            (text(rest, 1)? == table.name)
                .then_some(())
                .and_then(|()| Some((text(rest, 3)?, attribute(rest, 4).is_some())))
        });
        Ok(ours.collect())
    }

    /// The rules as they stand, without what counts transactions.
    fn rules(&mut self, table: &Table) -> io::Result<Vec<Vec<u8>>> {
        let answers = self.0.dump(table.message(GET_RULE, 0).text(1, &table.name))?;
        Ok(answers.into_iter().map(|answer| answer.get(4..).unwrap_or_default().to_vec()).collect())
    }

    /// Every element of every set of the table, but for what rules put in.
    pub(crate) fn elements(
        &mut self,
        table: &Table,
    ) -> io::Result<BTreeMap<&'static str, Elements>> {
        let mut all = BTreeMap::new();
        for set in table.sets.iter().filter(|set| !matches!(set.holds, Holds::Seen)) {
            all.insert(set.name, self.elements_of(table, set.name)?);
        }
        Ok(all)
    }

    pub(crate) fn elements_of(&mut self, table: &Table, set: &str) -> io::Result<Elements> {
        let message = table.message(GET_ELEMENT, 0).text(1, &table.name).text(2, set);
        let (holds, mut elements) = (table.holds(set), Elements::new());
        for answer in self.0.dump(message)? {
            let list = answer.get(4..).and_then(|rest| attribute(rest, 3)).unwrap_or_default();
            elements
                .extend(attributes(list).into_iter().filter_map(|(_, e)| parse_element(e, holds)));
        }
        Ok(elements)
    }

    /// What the counters of the table say; a table that is not there has none.
    pub(crate) fn counts(&mut self, table: &Table) -> io::Result<BTreeMap<String, u64>> {
        let message = table.message(GET_OBJECT, 0).text(1, &table.name);
        let answers = match self.0.dump(message.number_be(3, OBJECT_COUNTER)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            answers => answers?,
        };
        let count = |answer: &Answer| {
            let rest = answer.get(4..)?;
            let packets = attribute(attribute(rest, 4)?, 2)?.first_chunk().copied()?;
            Some((text(rest, 2)?, u64::from_be_bytes(packets)))
        };
        let ours = answers.iter().filter(|answer| {
            let name = answer.get(4..).and_then(|rest| text(rest, 1));
            name.is_some_and(|name| name == table.name)
        });
        Ok(ours.filter_map(count).collect())
    }

    /// Chains with a hook, of everybody.
    pub(crate) fn base_chains(&mut self) -> io::Result<Vec<BaseChain>> {
        let answers = self.0.dump(message(GET_CHAIN, 0, 0))?;
        Ok(answers.iter().filter_map(|answer| parse_base_chain(answer)).collect())
    }
}

/// A chain with a hook, of any table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BaseChain {
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) name: String,
    pub(crate) hook: u32,
    pub(crate) drops: bool,
}

fn parse_base_chain(answer: &[u8]) -> Option<BaseChain> {
    let rest = answer.get(4..)?;
    let hook = attribute(rest, 4)?;
    let number = |bytes: &[u8]| bytes.first_chunk().copied().map(u32::from_be_bytes);
    Some(BaseChain {
        family: *answer.first()?,
        table: text(rest, 1)?,
        name: text(rest, 3)?,
        hook: number(attribute(hook, 1)?)?,
        drops: attribute(rest, 5).and_then(number) == Some(0),
    })
}

fn parse_element(element: &[u8], holds: Option<Holds>) -> Option<(Bytes, Value)> {
    let key = Bytes::new(attribute(attribute(element, 1)?, VALUE)?)?;
    let Some(data) = attribute(element, 2) else { return Some((key, Value::Member)) };
    match (attribute(data, VALUE), holds) {
        (Some(bytes), Some(Holds::Numbers)) => {
            let class = bytes.first_chunk().map_or(u32::MAX, |bytes| u32::from_ne_bytes(*bytes));
            return Some((key, Value::Class(class)));
        }
        (Some(bytes), _) => return Some((key, Value::Bytes(Bytes::new(bytes)?))),
        (None, _) => {}
    }
    let chain = text(attribute(data, VERDICT)?, 2)?;
    let kind = if matches!(holds, Some(Holds::Slots)) { SLOT_CHAIN } else { CLASS_CHAIN };
    // What leads elsewhere is none of ours, and differs from all.
    let class = chain.strip_prefix(kind).and_then(|class| class.parse().ok()).unwrap_or(u32::MAX);
    Some((key, Value::Class(class)))
}

fn text(bytes: &[u8], kind: u16) -> Option<String> {
    let bytes = attribute(bytes, kind)?;
    Some(String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes)).into_owned())
}

pub(crate) fn class_chain(class: u32) -> String {
    format!("{CLASS_CHAIN}{class}")
}

pub(crate) fn slot_chain(slot: u32) -> String {
    format!("{SLOT_CHAIN}{slot}")
}

fn set_of(edit: &Edit) -> &'static str {
    match edit {
        Edit::Put { set, .. } | Edit::Replace { set, .. } | Edit::Delete { set, .. } => set,
    }
}

fn message(kind: u16, flags: u16, family: u8) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, flags, &[family, 0, 0, 0])
}

/// The generation that one transaction more leaves; the kernel's counter passes over zero.
fn after(generation: u32) -> u32 {
    match generation {
        UNKNOWN => UNKNOWN,
        known => known.checked_add(1).unwrap_or(1),
    }
}

fn mark(kind: u16) -> Message {
    let subsystem = SUBSYSTEM.to_be_bytes();
    Message::new(kind, 0, &[0, 0, subsystem[0], subsystem[1]])
}

/// Below the 64 KiB of an attribute, with the largest keys and values of ours.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// No generation of the kernel's.
pub(crate) const UNKNOWN: u32 = 0;

/// The time of a transaction grows faster than its length.
const EDITS_PER_TRANSACTION: usize = 2_000;

/// With a short key and value, as most of them have.
const ELEMENT_BYTES: usize = 40;

const CLASS_CHAIN: char = 'n';
const SLOT_CHAIN: char = 's';

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const BATCH_GENERATION: u16 = 1;
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const NEW_SET: u16 = 9;
const GET_SET: u16 = 10;
const NEW_ELEMENT: u16 = 12;
const GET_ELEMENT: u16 = 13;
const DELETE_ELEMENT: u16 = 14;
const GET_GENERATION: u16 = 16;
const NEW_OBJECT: u16 = 18;
const GET_OBJECT: u16 = 19;

const TABLE_USER_DATA: u16 = 6;
const RULE_USER_DATA: u16 = 7;
const SET_IS_MAP: u32 = 8;
const SET_FORGETS: u32 = 0x10;
const SET_IS_WRITTEN: u32 = 0x20;

/// Of what rules put in: more say nothing new.
const SEEN_MAX: u32 = 256;
const SEEN_MILLIS: u64 = 60_000;

const VERDICT_TYPE: u32 = 0xffff_ff00;

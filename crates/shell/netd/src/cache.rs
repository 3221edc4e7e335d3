//! What servers have said, for as long as they allow.
//!
//! Owns: how long an answer may be kept, and giving it with the time that is left.
//! Does not know: who asked whom; that is part of the key.
//! Invariant: never more than its entries and bytes; an answer is never kept longer than the
//! shortest of its records.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::query::{
    FLAG_CHECKING_DISABLED, FLAG_RECURSION_DESIRED, FLAG_TRUNCATED, HEADER_BYTES, Query, TYPE_OPT,
    TYPE_SOA, record_at, skip_name,
};

/// A question to a certain set of servers.
pub(crate) type CacheKey = Vec<u8>;

#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: HashMap<CacheKey, Entry>,
    /// The oldest first; every key once.
    order: VecDeque<CacheKey>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    answer: Box<[u8]>,
    /// Where the times are that count down.
    ttls: Box<[u16]>,
    since: Instant,
    ttl_secs: u32,
}

/// What tells answers apart.
pub(crate) fn key(servers: u64, query: &Query<'_>) -> CacheKey {
    let mut key = Vec::with_capacity(query.question.len() + 12);
    key.extend(servers.to_le_bytes());
    key.extend((query.flags & (FLAG_RECURSION_DESIRED | FLAG_CHECKING_DISABLED)).to_le_bytes());
    key.push(query.edns.map_or(0, |edns| 1 + u8::from(edns.dnssec)));
    key.extend_from_slice(query.key());
    // Type and class.
    key.extend_from_slice(&query.question[query.question.len() - 4..]);
    key
}

impl Cache {
    /// Puts an answer with the id and the spelling of the asker into `out`.
    pub(crate) fn find(
        &self,
        key: &CacheKey,
        query: &Query<'_>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> bool {
        let Some(entry) = self.entries.get(key) else { return false };
        let age = now.saturating_duration_since(entry.since).as_secs() as u32;
        if age >= entry.ttl_secs {
            return false;
        }
        out.clear();
        out.extend_from_slice(&entry.answer);
        out[..2].copy_from_slice(&query.id.to_be_bytes());
        out[HEADER_BYTES..HEADER_BYTES + query.question.len()].copy_from_slice(query.question);
        for at in &entry.ttls {
            let at = usize::from(*at);
            if let Some(slot) = out.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>()) {
                *slot = u32::from_be_bytes(*slot).saturating_sub(age).to_be_bytes();
            }
        }
        true
    }

    /// Keeps an answer if it may be kept. Its question must be the one of the key.
    pub(crate) fn insert(&mut self, key: CacheKey, answer: &[u8], now: Instant) {
        if answer.len() > ANSWER_BYTES_MAX {
            return;
        }
        let Some((ttl_secs, ttls)) = lifetime(answer) else { return };
        let size = key.len() + answer.len();
        while self.entries.len() >= ENTRIES_MAX || self.bytes + size > BYTES_MAX {
            self.drop_oldest();
        }
        let entry = Entry { answer: answer.into(), ttls: ttls.into(), since: now, ttl_secs };
        self.bytes += size;
        match self.entries.insert(key.clone(), entry) {
            Some(old) => self.bytes -= key.len() + old.answer.len(),
            None => self.order.push_back(key),
        }
    }

    fn drop_oldest(&mut self) {
        let Some(key) = self.order.pop_front() else { return };
        if let Some(entry) = self.entries.remove(&key) {
            self.bytes -= key.len() + entry.answer.len();
        }
    }
}

/// For how many seconds an answer may be kept, and where its times are.
fn lifetime(answer: &[u8]) -> Option<(u32, Vec<u16>)> {
    let header: &[u8; HEADER_BYTES] = answer.first_chunk()?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (flags, questions, answers, authorities, additional) =
        (word(2), word(4), word(6), word(8), word(10));
    let code = flags & 0xf;
    let total = usize::from(answers) + usize::from(authorities) + usize::from(additional);
    if flags & FLAG_TRUNCATED != 0 || ![0, 3].contains(&code) || questions != 1 {
        return None;
    }
    if total > RECORDS_MAX {
        return None;
    }
    let mut at = skip_name(answer, HEADER_BYTES)? + 4;
    let (mut ttls, mut shortest, mut negative) = (Vec::new(), u32::MAX, None);
    for index in 0..total {
        let record = record_at(answer, at)?;
        at = record.end;
        if record.kind == TYPE_OPT {
            continue;
        }
        ttls.push(u16::try_from(record.ttl_at).ok()?);
        shortest = shortest.min(record.ttl);
        let is_authority = (usize::from(answers)..usize::from(answers) + usize::from(authorities))
            .contains(&index);
        if is_authority && record.kind == TYPE_SOA {
            // The last of its numbers (RFC 2308, 4).
            let minimum = answer.get(record.end - 4..record.end)?.first_chunk::<4>()?;
            negative = Some(u32::from_be_bytes(*minimum).min(record.ttl));
        }
    }
    let is_negative = answers == 0 || code == 3;
    let ttl = if is_negative {
        negative?.min(shortest).min(NEGATIVE_SECS_MAX)
    } else {
        shortest.min(POSITIVE_SECS_MAX)
    };
    // The sign bit means zero (RFC 2181, 8).
    (ttl > 0 && ttl < 1 << 31).then_some((ttl, ttls))
}

/// A few pages of names that an application uses; more only costs a question.
const ENTRIES_MAX: usize = 4_096;
const BYTES_MAX: usize = 2 * 1024 * 1024;
const ANSWER_BYTES_MAX: usize = 4_096;
/// More would make one answer slow to walk.
const RECORDS_MAX: usize = 512;
const POSITIVE_SECS_MAX: u32 = Duration::from_secs(3_600).as_secs() as u32;
/// A name that has just been made is seen soon.
const NEGATIVE_SECS_MAX: u32 = 60;

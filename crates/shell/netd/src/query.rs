//! One question as it comes from a container.
//!
//! Owns: reading the header, the question and the size that the asker can take; answers that
//! consist of addresses or of nothing but a code.
//! Does not know: names, forwarding, sockets.
//! Invariant: reads no byte twice and follows no pointer, so any message takes bounded time.

use std::net::IpAddr;

use crate::names::NAME_BYTES_MAX;

pub(crate) const HEADER_BYTES: usize = 12;
/// Without a word about size an asker takes this much by UDP (RFC 1035, 4.2.1).
pub(crate) const PLAIN_BYTES_MAX: usize = 512;
/// What we say that we take (DNS flag day 2020: no fragments on any path).
const OWN_UDP_BYTES: u16 = 1_232;

pub(crate) const TYPE_A: u16 = 1;
pub(crate) const TYPE_SOA: u16 = 6;
pub(crate) const TYPE_PTR: u16 = 12;
pub(crate) const TYPE_AAAA: u16 = 28;
pub(crate) const TYPE_SRV: u16 = 33;
pub(crate) const TYPE_OPT: u16 = 41;
pub(crate) const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;

/// RFC 1035, 4.1.1 and RFC 6891.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    BadVers = 16,
}

/// A question that can be answered or passed on.
#[derive(Clone, Debug)]
pub(crate) struct Query<'a> {
    /// The whole message.
    pub(crate) bytes: &'a [u8],
    pub(crate) id: u16,
    /// Second word of the header.
    pub(crate) flags: u16,
    /// Name, type and class as they came.
    pub(crate) question: &'a [u8],
    pub(crate) kind: u16,
    class: u16,
    pub(crate) edns: Option<Edns>,
    key: [u8; NAME_BYTES_MAX],
    key_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns {
    pub(crate) size: u16,
    pub(crate) version: u8,
    /// The asker wants signatures too.
    pub(crate) dnssec: bool,
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Nothing to answer to: no header, or itself an answer.
    Silent,
    /// Answered with a code and no question.
    Refused { id: u16, flags: u16, code: Code },
}

impl<'a> Query<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(Malformed::Silent);
        };
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (id, flags) = (word(0), word(2));
        if flags & FLAG_RESPONSE != 0 {
            return Err(Malformed::Silent);
        }
        let refuse = |code| Malformed::Refused { id, flags, code };
        if flags & OPCODE_MASK != 0 {
            return Err(refuse(Code::NotImp));
        }
        let counts = (word(4), word(6), word(8), word(10));
        let (1, 0, 0, additional @ 0..=ADDITIONAL_MAX) = counts else {
            return Err(refuse(Code::FormErr));
        };
        let mut key = [0; NAME_BYTES_MAX];
        let Some((key_bytes, rest)) = take_name(body, &mut key) else {
            return Err(refuse(Code::FormErr));
        };
        let Some((fixed, rest)) = rest.split_first_chunk::<4>() else {
            return Err(refuse(Code::FormErr));
        };
        let Ok(edns) = take_edns(rest, additional) else { return Err(refuse(Code::FormErr)) };
        Ok(Self {
            bytes,
            id,
            flags,
            question: &body[..body.len() - rest.len()],
            kind: u16::from_be_bytes([fixed[0], fixed[1]]),
            class: u16::from_be_bytes([fixed[2], fixed[3]]),
            edns,
            key,
            key_bytes,
        })
    }

    /// The name in the form of [`crate::names::key_of`]; empty for the root.
    pub(crate) fn key(&self) -> &[u8] {
        &self.key[..self.key_bytes]
    }

    /// The name as text, without a dot at the end; only for names that are compared as text.
    pub(crate) fn labels(&self) -> Vec<&[u8]> {
        let (mut labels, mut rest) = (Vec::new(), self.key());
        while let Some((length, after)) = rest.split_first() {
            let (label, after) = after.split_at(usize::from(*length));
            labels.push(label);
            rest = after;
        }
        labels
    }

    /// Of the class that names here have.
    pub(crate) fn is_internet(&self) -> bool {
        [CLASS_IN, CLASS_ANY].contains(&self.class)
    }

    /// Bytes that the asker takes in one datagram.
    pub(crate) fn udp_bytes_max(&self) -> usize {
        self.edns.map_or(PLAIN_BYTES_MAX, |edns| usize::from(edns.size).max(PLAIN_BYTES_MAX))
    }

    /// An answer of addresses of the type asked for, from `first` on around the circle; as many as
    /// fit into `bytes_max`, and marked as cut when some do not. By none it says that the name
    /// has no such record.
    pub(crate) fn answer(
        &self,
        addresses: &[IpAddr],
        first: usize,
        ttl: u32,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) {
        self.begin(Code::NoError, out);
        let end = bytes_max.min(MESSAGE_BYTES_MAX) - self.edns.map_or(0, |_| OPT_BYTES);
        let (before, after) = addresses.split_at(first.min(addresses.len()));
        let mut count: u16 = 0;
        for address in after.iter().chain(before) {
            let size = match address {
                IpAddr::V4(_) if [TYPE_A, TYPE_ANY].contains(&self.kind) => 16,
                IpAddr::V6(_) if [TYPE_AAAA, TYPE_ANY].contains(&self.kind) => 28,
                _ => continue,
            };
            if out.len() + size > end {
                out[2] |= (FLAG_TRUNCATED >> 8) as u8;
                break;
            }
            put_address(address, ttl, out);
            count += 1;
        }
        out[6..8].copy_from_slice(&count.to_be_bytes());
        self.end(Code::NoError, out);
    }

    /// An answer without records.
    pub(crate) fn refuse(&self, code: Code, out: &mut Vec<u8>) {
        self.begin(code, out);
        self.end(code, out);
    }

    /// An answer without records that makes the asker come again by TCP.
    pub(crate) fn truncated(&self, out: &mut Vec<u8>) {
        self.begin(Code::NoError, out);
        out[2] |= (FLAG_TRUNCATED >> 8) as u8;
        self.end(Code::NoError, out);
    }

    fn begin(&self, code: Code, out: &mut Vec<u8>) {
        out.clear();
        put_header(self.id, self.flags, code, 1, out);
        if code == Code::NoError || code == Code::NxDomain {
            out[2] |= (FLAG_AUTHORITATIVE >> 8) as u8;
        }
        out.extend_from_slice(self.question);
    }

    fn end(&self, code: Code, out: &mut Vec<u8>) {
        let Some(edns) = self.edns else { return };
        out[11] = 1;
        out.push(0);
        out.extend(TYPE_OPT.to_be_bytes());
        out.extend(OWN_UDP_BYTES.to_be_bytes());
        // Upper bits of the code, our version, and the flag that signatures were asked for.
        out.extend([(code as u16 >> 4) as u8, 0, u8::from(edns.dnssec) << 7, 0, 0, 0]);
    }
}

/// The answer to a message whose question cannot be repeated.
pub(crate) fn refuse_malformed(id: u16, flags: u16, code: Code, out: &mut Vec<u8>) {
    out.clear();
    put_header(id, flags, code, 0, out);
}

fn put_header(id: u16, flags: u16, code: Code, questions: u16, out: &mut Vec<u8>) {
    let flags = FLAG_RESPONSE
        | flags & (OPCODE_MASK | FLAG_RECURSION_DESIRED | FLAG_CHECKING_DISABLED)
        | FLAG_RECURSION_AVAILABLE
        | code as u16 & 0xf;
    for word in [id, flags, questions, 0, 0, 0] {
        out.extend(word.to_be_bytes());
    }
}

fn put_address(address: &IpAddr, ttl: u32, out: &mut Vec<u8>) {
    // The name is the question's: a pointer to the byte after the header.
    out.extend([0xc0, HEADER_BYTES as u8]);
    let (kind, octets): (u16, &[u8]) = match address {
        IpAddr::V4(v4) => (TYPE_A, &v4.octets()),
        IpAddr::V6(v6) => (TYPE_AAAA, &v6.octets()),
    };
    out.extend(kind.to_be_bytes());
    out.extend(CLASS_IN.to_be_bytes());
    out.extend(ttl.to_be_bytes());
    out.extend((octets.len() as u16).to_be_bytes());
    out.extend_from_slice(octets);
}

/// Puts the name into `key` in lower case; gives its length and what follows the name. A question
/// has no reason to point anywhere: a pointer is refused.
fn take_name<'a>(bytes: &'a [u8], key: &mut [u8; NAME_BYTES_MAX]) -> Option<(usize, &'a [u8])> {
    let mut at = 0;
    loop {
        let length = *bytes.get(at)?;
        if length == 0 {
            return Some((at, &bytes[at + 1..]));
        }
        let end = at + 1 + usize::from(length);
        // One byte is left for the empty label.
        if length > LABEL_BYTES_MAX || end >= NAME_BYTES_MAX || end > bytes.len() {
            return None;
        }
        key[at] = length;
        for (to, from) in key[at + 1..end].iter_mut().zip(&bytes[at + 1..end]) {
            *to = from.to_ascii_lowercase();
        }
        at = end;
    }
}

/// Walks the additional records for the one of RFC 6891; an error when they are cut short or
/// there are two of it.
fn take_edns(bytes: &[u8], count: u16) -> Result<Option<Edns>, ()> {
    let (mut edns, mut at) = (None, 0);
    for _ in 0..count {
        let record = record_at(bytes, at).ok_or(())?;
        at = record.end;
        if record.kind != TYPE_OPT {
            continue;
        }
        if edns.is_some() || !record.has_root_name {
            return Err(());
        }
        let [_, version, flags, _] = record.ttl.to_be_bytes();
        edns = Some(Edns { size: record.class, version, dnssec: flags & 0x80 != 0 });
    }
    Ok(edns)
}

/// Where one record is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    has_root_name: bool,
    pub(crate) kind: u16,
    class: u16,
    pub(crate) ttl: u32,
    pub(crate) ttl_at: usize,
    pub(crate) end: usize,
}

/// The record that begins at `at`; its name is skipped, not read.
pub(crate) fn record_at(bytes: &[u8], at: usize) -> Option<Record> {
    let after = skip_name(bytes, at)?;
    let fixed: &[u8; 10] = bytes.get(after..)?.first_chunk()?;
    let word = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
    let end = after + fixed.len() + usize::from(word(8));
    (end <= bytes.len()).then_some(Record {
        has_root_name: after == at + 1,
        kind: word(0),
        class: word(2),
        ttl: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
        ttl_at: after + 4,
        end,
    })
}

/// Where the name at `at` ends; a pointer ends it, wherever it points.
pub(crate) fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=LABEL_BYTES_MAX => at += 1 + usize::from(length),
            0xc0.. => return bytes.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

const FLAG_RESPONSE: u16 = 0x8000;
const OPCODE_MASK: u16 = 0x7800;
const FLAG_AUTHORITATIVE: u16 = 0x0400;
pub(crate) const FLAG_TRUNCATED: u16 = 0x0200;
pub(crate) const FLAG_RECURSION_DESIRED: u16 = 0x0100;
const FLAG_RECURSION_AVAILABLE: u16 = 0x0080;
pub(crate) const FLAG_CHECKING_DISABLED: u16 = 0x0010;

const LABEL_BYTES_MAX: u8 = 63;
const MESSAGE_BYTES_MAX: usize = 65_535;
const OPT_BYTES: usize = 11;
/// OPT, and a signature of the question.
const ADDITIONAL_MAX: u16 = 4;

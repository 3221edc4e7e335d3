//! The answer to one question, from what is known here.
//!
//! Owns: on which networks a name is looked for, in which order, and the answers of each type.
//! Does not know: sockets, forwarding; a question that is not about us is handed back.
//! Invariant: an answer names only what is on the asking container's own networks.

use std::net::IpAddr;

use hickory_proto::op::{Edns as WireEdns, Message, OpCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SRV};
use hickory_proto::rr::{Name, RData, Record};
use types::NetworkId;

use crate::names::{Directory, Found, Location, Reverse};
use crate::query::{Code, Query, TYPE_PTR, TYPE_SRV};

/// What is known: of the cluster, and of the node's own networks.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) scopes: [Directory; 2],
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The answer is in the buffer.
    Answered,
    /// Somebody else may know.
    Foreign,
}

/// What resolving needs to be quick: no allocation from one question to the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    addresses: Vec<IpAddr>,
    turn: u64,
}

impl Records {
    /// Answers a question of a container that is on `networks`, in `bytes_max` bytes.
    pub(crate) fn resolve(
        &self,
        query: &Query<'_>,
        networks: &[NetworkId],
        bytes_max: usize,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Verdict {
        if query.edns.is_some_and(|edns| edns.version != 0) {
            query.refuse(Code::BadVers, out);
            return Verdict::Answered;
        }
        if !query.is_internet() {
            return Verdict::Foreign;
        }
        if let Some(found) = self.find(networks, query.key()) {
            scratch.addresses.clear();
            let ttl = found.addresses(&mut scratch.addresses);
            let first = scratch.next_first();
            query.answer(&scratch.addresses, first, ttl, bytes_max, out);
            return Verdict::Answered;
        }
        match query.kind {
            TYPE_PTR => self.reverse(query, networks, bytes_max, out),
            TYPE_SRV => self.service(query, networks, bytes_max, out),
            _ => Verdict::Foreign,
        }
    }

    /// The first network that has the name, or else the first whose own name it ends with.
    fn find<'a>(&'a self, networks: &[NetworkId], key: &'a [u8]) -> Option<Found<'a>> {
        let tables =
            || networks.iter().filter_map(|id| self.scopes.iter().find_map(|s| s.network(*id)));
        let plain = tables().find_map(|names| names.find(key));
        plain.or_else(|| {
            tables().find_map(|names| names.prefix_of(key).and_then(|key| names.find(key)))
        })
    }

    fn reverse(
        &self,
        query: &Query<'_>,
        networks: &[NetworkId],
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let Ok(asked) = Message::from_vec(query.bytes) else { return malformed(query, out) };
        let Some(address) = asked.queries.first().and_then(|q| address_of(q.name())) else {
            return Verdict::Foreign;
        };
        let mut is_ours = false;
        for id in networks {
            let Some(names) = self.scopes.iter().find_map(|scope| scope.network(*id)) else {
                continue;
            };
            match names.reverse(address) {
                Reverse::Named { name, ttl } => {
                    let Ok(target) = absolute(&name) else { return malformed(query, out) };
                    let records = vec![(ttl, RData::PTR(PTR(target)))];
                    return answer(query, &asked, records, Vec::new(), bytes_max, out);
                }
                Reverse::Unused => is_ours = true,
                Reverse::Foreign => {}
            }
        }
        if is_ours {
            query.refuse(Code::NxDomain, out);
            return Verdict::Answered;
        }
        Verdict::Foreign
    }

    /// `_port._protocol.name`, or docker's form of it without the underscores.
    fn service(
        &self,
        query: &Query<'_>,
        networks: &[NetworkId],
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let labels = query.labels();
        let [port, protocol, name @ ..] = labels.as_slice() else { return Verdict::Foreign };
        let (Some(port), Some(protocol)) = (plain(port), plain(protocol)) else {
            return Verdict::Foreign;
        };
        let skip = query.key().len() - name.iter().map(|label| label.len() + 1).sum::<usize>();
        let Some(found) = self.find(networks, &query.key()[skip..]) else {
            return Verdict::Foreign;
        };
        let locations = found.locations(port, protocol);
        if locations.is_empty() {
            query.refuse(Code::NxDomain, out);
            return Verdict::Answered;
        }
        let Ok(asked) = Message::from_vec(query.bytes) else { return malformed(query, out) };
        let own = asked.queries.first().map(|q| q.name().trim_to(name.len()));
        let Some(own) = own else { return malformed(query, out) };
        let (mut records, mut additional) = (Vec::new(), Vec::new());
        for Location { port, host, addresses, ttl } in locations {
            let target = if host.is_empty() { Ok(own.clone()) } else { absolute(&host) };
            let Ok(target) = target else { continue };
            additional.extend(addresses.into_iter().map(|address| {
                let data = match address {
                    IpAddr::V4(v4) => RData::A(A(v4)),
                    IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
                };
                Record::from_rdata(target.clone(), ttl, data)
            }));
            records.push((ttl, RData::SRV(SRV::new(0, 0, port, target))));
        }
        answer(query, &asked, records, additional, bytes_max, out)
    }
}

impl Scratch {
    /// Another one of the addresses stands first in every answer.
    fn next_first(&mut self) -> usize {
        let count = self.addresses.len() as u64;
        // An odd step that is far from every small divisor: neighbours in time differ.
        self.turn = self.turn.wrapping_add(STEP);
        if count > 1 { ((self.turn >> 16) % count) as usize } else { 0 }
    }
}

/// As many records as fit: without the additional ones when those are too much.
fn answer(
    query: &Query<'_>,
    asked: &Message,
    records: Vec<(u32, RData)>,
    additional: Vec<Record>,
    bytes_max: usize,
    out: &mut Vec<u8>,
) -> Verdict {
    let Some(question) = asked.queries.first() else { return malformed(query, out) };
    let mut message = Message::response(query.id, OpCode::Query);
    message.metadata.authoritative = true;
    message.metadata.recursion_available = true;
    message.metadata.recursion_desired = asked.metadata.recursion_desired;
    message.metadata.checking_disabled = asked.metadata.checking_disabled;
    message.add_query(question.clone());
    let owner = question.name();
    message.add_answers(
        records.into_iter().map(|(ttl, data)| Record::from_rdata(owner.clone(), ttl, data)),
    );
    message.add_additionals(additional);
    if let Some(edns) = query.edns {
        let mut own = WireEdns::new();
        own.set_max_payload(1_232);
        own.set_dnssec_ok(edns.dnssec);
        message.set_edns(own);
    }
    for without_additional in [false, true] {
        if without_additional {
            message.additionals.clear();
        }
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= bytes_max => {
                out.clear();
                out.extend_from_slice(&bytes);
                return Verdict::Answered;
            }
            Ok(_) | Err(_) => {}
        }
    }
    query.truncated(out);
    Verdict::Answered
}

fn malformed(query: &Query<'_>, out: &mut Vec<u8>) -> Verdict {
    query.refuse(Code::FormErr, out);
    Verdict::Answered
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn address_of(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

fn absolute(name: &str) -> Result<Name, hickory_proto::ProtoError> {
    let labels = name.trim_end_matches('.').split('.').map(str::as_bytes);
    let mut name = Name::from_labels(labels)?;
    name.set_fqdn(true);
    Ok(name)
}

/// A label as text, without the underscore in front of it.
fn plain(label: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(label).ok()?;
    Some(text.strip_prefix('_').unwrap_or(text))
}

/// Fractional part of the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

//! Rules of iptables-legacy, which nftables does not list.
//!
//! Owns: reading the filter table of that kind, and what its last word is.
//! Does not know: who made it. Invariant: it is only read: a table that is not there is not made
//! by asking for it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::nft::expression::Family;

/// One built-in chain of the filter table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chain {
    Input,
    Forward,
}

/// The filter table of one family, as the kernel gives it.
#[derive(Clone, Debug)]
pub(crate) struct Legacy {
    family: Family,
    entries: Vec<u8>,
    hooks: [usize; HOOKS],
    underflows: [usize; HOOKS],
}

/// One rule, in part.
struct Entry<'a> {
    layout: &'static Layout,
    bytes: &'a [u8],
}

/// Where things stand in a rule.
struct Layout {
    in_link: usize,
    out_link: usize,
    protocol: usize,
    target: usize,
    /// First byte of what else is asked.
    matches: usize,
}

impl Legacy {
    /// In the namespace of the calling thread; `None`: there is no such table.
    pub(crate) fn read(family: Family) -> io::Result<Option<Self>> {
        let file = match family {
            Family::V4 => "/proc/thread-self/net/ip_tables_names",
            Family::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        // A kernel that does not have them at all has no such file.
        let names = fs::read_to_string(file).unwrap_or_default();
        if !names.lines().any(|name| name == "filter") {
            return Ok(None);
        }
        let socket = raw_socket(family)?;
        let mut info = [0; INFO_BYTES];
        info[..FILTER.len()].copy_from_slice(FILTER);
        ask(&socket, family, GET_INFO, &mut info)?;
        let number = |at: usize| read_u32(&info, at) as usize;
        let size = number(INFO_SIZE).min(ENTRIES_BYTES_MAX);
        let mut answer = vec![0; ENTRIES_AT + size];
        answer[..FILTER.len()].copy_from_slice(FILTER);
        answer[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&(size as u32).to_ne_bytes());
        ask(&socket, family, GET_ENTRIES, &mut answer)?;
        let at = |first: usize| std::array::from_fn(|hook| number(first + 4 * hook));
        Ok(Some(Self {
            family,
            entries: answer.split_off(ENTRIES_AT),
            hooks: at(INFO_HOOKS),
            underflows: at(INFO_UNDERFLOWS),
        }))
    }

    /// Whether what no rule decided about is dropped.
    pub(crate) fn drops(&self, chain: Chain) -> bool {
        let policy = self.entry(self.underflows[chain.hook()]);
        policy.is_some_and(|policy| policy.verdict() == Some(DROP))
    }

    /// Whether a rule of the chain itself accepts everything that comes from a link, and everything
    /// that goes to it.
    pub(crate) fn passes_link(&self, link: &str) -> bool {
        let named = |name: Option<&[u8]>| name.is_some_and(|name| is_name(name, link));
        let accepts = |entry: &Entry<'_>| entry.verdict() == Some(ACCEPT) && entry.asks_no_more();
        let into = self.rules(Chain::Forward).any(|rule| accepts(&rule) && named(rule.in_link()));
        let out = self.rules(Chain::Forward).any(|rule| accepts(&rule) && named(rule.out_link()));
        into && out
    }

    /// Whether a rule of the chain itself accepts datagrams for a port.
    pub(crate) fn passes_port(&self, port: u16) -> bool {
        let accepts = |rule: Entry<'_>| {
            rule.verdict() == Some(ACCEPT)
                && rule.protocol() == Some(libc::IPPROTO_UDP as u16)
                && rule.ports().is_none_or(|(low, high)| (low..=high).contains(&port))
        };
        self.rules(Chain::Input).any(accepts)
    }

    fn rules(&self, chain: Chain) -> impl Iterator<Item = Entry<'_>> {
        let (mut at, end) = (self.hooks[chain.hook()], self.underflows[chain.hook()]);
        std::iter::from_fn(move || {
            let entry = self.entry(at).filter(|_| at < end)?;
            at += entry.length()?;
            Some(entry)
        })
    }

    fn entry(&self, at: usize) -> Option<Entry<'_>> {
        let layout = match self.family {
            Family::V4 => &V4,
            Family::V6 => &V6,
        };
        Some(Entry { layout, bytes: self.entries.get(at..)? })
    }
}

impl Chain {
    fn hook(self) -> usize {
        match self {
            Self::Input => 1,
            Self::Forward => 2,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
        }
    }
}

impl Entry<'_> {
    fn short(&self, at: usize) -> Option<usize> {
        self.bytes.get(at..)?.first_chunk().map(|bytes| usize::from(u16::from_ne_bytes(*bytes)))
    }

    /// `None` where it is not one: it would have no end.
    fn length(&self) -> Option<usize> {
        self.short(self.layout.target + 2).filter(|length| *length > self.layout.matches)
    }

    fn target(&self) -> Option<usize> {
        self.short(self.layout.target)
    }

    /// Of the standard target, whose name is empty.
    fn verdict(&self) -> Option<i32> {
        let target = self.bytes.get(self.target()?..)?;
        let verdict = target.get(TARGET_HEAD..)?.first_chunk()?;
        (*target.get(2)? == 0).then(|| i32::from_ne_bytes(*verdict))
    }

    fn asks_no_more(&self) -> bool {
        self.target() == Some(self.layout.matches) && self.protocol() == Some(0)
    }

    fn in_link(&self) -> Option<&[u8]> {
        self.bytes.get(self.layout.in_link..self.layout.in_link + NAME)
    }

    fn out_link(&self) -> Option<&[u8]> {
        self.bytes.get(self.layout.out_link..self.layout.out_link + NAME)
    }

    fn protocol(&self) -> Option<u16> {
        self.short(self.layout.protocol).map(|protocol| protocol as u16)
    }

    /// The destination ports that it is about; `None`: it does not say.
    fn ports(&self) -> Option<(u16, u16)> {
        let matches = self.bytes.get(self.layout.matches..self.target()?)?;
        if matches.get(2..6)? != b"udp\0" {
            return None;
        }
        let port = |at: usize| matches.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes);
        Some((port(TARGET_HEAD + 4)?, port(TARGET_HEAD + 6)?))
    }
}

fn is_name(bytes: &[u8], name: &str) -> bool {
    bytes.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn raw_socket(family: Family) -> io::Result<OwnedFd> {
    let domain = i32::from(family.number());
    // SAFETY: socket takes no pointers.
    let fd =
        unsafe { libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn level(family: Family) -> libc::c_int {
    match family {
        Family::V4 => libc::IPPROTO_IP,
        Family::V6 => libc::IPPROTO_IPV6,
    }
}

fn ask(socket: &OwnedFd, family: Family, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: buffer and length are live during the call, and the length is the buffer's.
    let result = unsafe {
        let (fd, level) = (socket.as_raw_fd(), level(family));
        libc::getsockopt(fd, level, option, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const V4: Layout = Layout { in_link: 16, out_link: 32, protocol: 80, target: 88, matches: 112 };
const V6: Layout = Layout { in_link: 64, out_link: 80, protocol: 128, target: 140, matches: 168 };

const HOOKS: usize = 5;
const NAME: usize = 16;
/// Of the head of a match or target.
const TARGET_HEAD: usize = 32;
const DROP: i32 = -1;
const ACCEPT: i32 = -2;

const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
const FILTER: &[u8] = b"filter";
const NAME_BYTES: usize = 32;
const INFO_HOOKS: usize = 36;
const INFO_UNDERFLOWS: usize = 56;
const INFO_SIZE: usize = 80;
const INFO_BYTES: usize = 84;
const ENTRIES_AT: usize = 40;

/// Tables of that kind are as large as their makers were patient.
const ENTRIES_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Gives the chains of the table another last word, and the first chain rules.
    fn set_policy(family: Family, verdict: i32) {
        let socket = raw_socket(family).unwrap();
        let mut info = [0; INFO_BYTES];
        info[..FILTER.len()].copy_from_slice(FILTER);
        ask(&socket, family, GET_INFO, &mut info).unwrap();
        let size = read_u32(&info, INFO_SIZE) as usize;
        let mut answer = vec![0; ENTRIES_AT + size];
        answer[..FILTER.len()].copy_from_slice(FILTER);
        answer[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&(size as u32).to_ne_bytes());
        ask(&socket, family, GET_ENTRIES, &mut answer).unwrap();
        let mut entries = answer.split_off(ENTRIES_AT);
        let layout = if family == Family::V4 { &V4 } else { &V6 };
        for hook in [1, 2] {
            let at = read_u32(&info, INFO_UNDERFLOWS + 4 * hook) as usize;
            let entry = Entry { layout, bytes: &entries[at..] };
            let place = at + entry.target().unwrap() + TARGET_HEAD;
            entries[place..place + 4].copy_from_slice(&verdict.to_ne_bytes());
        }
        // name, valid_hooks, num_entries, size, hook_entry, underflow, num_counters, counters
        let mut replace = info[..36].to_vec();
        let count = read_u32(&info, 76);
        replace.extend(count.to_ne_bytes());
        replace.extend((size as u32).to_ne_bytes());
        replace.extend(&info[INFO_HOOKS..76]);
        replace.extend(count.to_ne_bytes());
        let counters = vec![0u64; 2 * count as usize];
        replace.extend((counters.as_ptr() as u64).to_ne_bytes());
        replace.extend(entries);
        // SAFETY: the message and the counters that it points to are live during the call.
        let result = unsafe {
            let (fd, level) = (socket.as_raw_fd(), level(family));
            libc::setsockopt(fd, level, 64, replace.as_ptr().cast(), replace.len() as u32)
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    #[test]
    fn the_last_word_of_a_legacy_table_is_read_and_no_table_is_made() {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            for family in Family::ALL {
                assert!(Legacy::read(family).unwrap().is_none(), "there is none yet");
                let socket = raw_socket(family).unwrap();
                let mut info = [0; INFO_BYTES];
                info[..FILTER.len()].copy_from_slice(FILTER);
                // Asking for one makes it.
                if let Err(error) = ask(&socket, family, GET_INFO, &mut info) {
                    println!("skipped: this kernel has no legacy tables of {family:?}: {error}");
                    continue;
                }
                let table = Legacy::read(family).unwrap().unwrap();
                assert!(!table.drops(Chain::Forward) && !table.drops(Chain::Input));
                set_policy(family, DROP);
                let table = Legacy::read(family).unwrap().unwrap();
                assert!(table.drops(Chain::Forward) && table.drops(Chain::Input));
                assert!(!table.passes_link("gw0") && !table.passes_port(4789));
                set_policy(family, ACCEPT);
                assert!(!Legacy::read(family).unwrap().unwrap().drops(Chain::Forward));
            }
        })
        .join()
        .unwrap();
    }

    /// A table of one rule and the last word, for the forward chain.
    fn table(family: Family, rule: impl FnOnce(&mut Vec<u8>, &Layout)) -> Legacy {
        let layout = if family == Family::V4 { &V4 } else { &V6 };
        let mut first = vec![0; layout.matches];
        rule(&mut first, layout);
        let target = first.len();
        first[layout.target..][..2].copy_from_slice(&(target as u16).to_ne_bytes());
        first.extend([40, 0]);
        first.resize(target + TARGET_HEAD, 0);
        first.extend(ACCEPT.to_ne_bytes());
        first.extend([0; 4]);
        let length = first.len();
        first[layout.target + 2..][..2].copy_from_slice(&(length as u16).to_ne_bytes());
        Legacy { family, entries: first, hooks: [0; HOOKS], underflows: [length; HOOKS] }
    }

    #[test]
    fn rules_that_let_pass_are_found() {
        for family in Family::ALL {
            let both = table(family, |rule, layout| {
                rule[layout.in_link..][..3].copy_from_slice(b"gw0");
                rule[layout.out_link..][..3].copy_from_slice(b"gw0");
            });
            assert!(both.passes_link("gw0") && !both.passes_link("gw") && !both.passes_port(4789));
            let one = table(family, |rule, layout| {
                rule[layout.in_link..][..3].copy_from_slice(b"gw0");
            });
            assert!(!one.passes_link("gw0"), "only one direction");
            let port = table(family, |rule, layout| {
                rule[layout.protocol..][..2].copy_from_slice(&17u16.to_ne_bytes());
                let mut asked = vec![48, 0];
                asked.extend(b"udp\0");
                asked.resize(TARGET_HEAD, 0);
                for number in [0, u16::MAX, 4_000, 5_000] {
                    asked.extend(number.to_ne_bytes());
                }
                asked.resize(48, 0);
                rule.extend(asked);
            });
            assert!(port.passes_port(4_789) && !port.passes_port(5_001));
            assert!(!port.passes_link("gw0"));
        }
    }

    #[test]
    fn a_table_that_makes_no_sense_has_no_rules_and_no_last_word() {
        for bytes in [Vec::new(), vec![0; 300], vec![0xff; 300]] {
            for at in [0, 150, 299, 4_000] {
                let (hooks, underflows) = ([0; HOOKS], [at; HOOKS]);
                let table =
                    Legacy { family: Family::V4, entries: bytes.clone(), hooks, underflows };
                assert!(!table.drops(Chain::Forward) || bytes.first() == Some(&0xff));
                assert!(!table.passes_port(4_789) && !table.passes_link("gw0"));
            }
        }
    }
}

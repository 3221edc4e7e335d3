//! Connections that the programs of a namespace were asked for, as their own sockets say.
//!
//! Owns: the messages that list sockets, sock_diag(7), and which of them are open.
//! Does not know: whose the namespace is; what is tracked elsewhere.
//! Invariant: what a program itself opened to others does not count.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use crate::netlink::{Message, Socket, attribute};
use crate::route::{V4, V6, parse_ip};

/// A TCP socket, or what will be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    /// As the kernel numbers them.
    state: u8,
    local: IpAddr,
    port: u16,
    /// Some program has it.
    owned: bool,
    /// Bytes that are not sent, or not acknowledged.
    unsent: u32,
    /// Milliseconds without a packet.
    silent: u32,
}

impl Entry {
    /// Somebody may still send on it, or waits for what was sent.
    fn is_open(&self) -> bool {
        match self.state {
            LISTEN => false,
            FIN_WAIT_2 => self.owned,
            // Programs that forget to close keep such ones for ever.
            CLOSE_WAIT => self.unsent > 0 || self.silent < CLOSE_WAIT_MILLIS,
            _ => true,
        }
    }
}

/// Open connections to the addresses, at ports where somebody listens, in the namespace of the
/// calling thread.
pub(crate) fn open_to(addresses: &BTreeSet<IpAddr>) -> io::Result<usize> {
    let mut socket = Socket::open(libc::NETLINK_SOCK_DIAG)?;
    let mut all = Vec::new();
    for family in [V4, V6] {
        let answers = socket.dump(Message::new(BY_FAMILY, 0, &request(family)))?;
        all.extend(answers.iter().filter_map(|answer| parse(answer)));
    }
    Ok(open_among(&all, addresses))
}

fn open_among(all: &[Entry], addresses: &BTreeSet<IpAddr>) -> usize {
    let served: BTreeSet<u16> =
        all.iter().filter(|entry| entry.state == LISTEN).map(|entry| entry.port).collect();
    let is_one = |entry: &&Entry| {
        served.contains(&entry.port) && addresses.contains(&entry.local) && entry.is_open()
    };
    all.iter().filter(is_one).count()
}

/// `struct inet_diag_req_v2`: all sockets in one of the states.
fn request(family: u8) -> [u8; 56] {
    let mut bytes = [0; 56];
    bytes[..3].copy_from_slice(&[family, libc::IPPROTO_TCP as u8, WITH_INFO]);
    bytes[4..8].copy_from_slice(&STATES.to_ne_bytes());
    bytes
}

/// `struct inet_diag_msg`, and `struct tcp_info` after it.
fn parse(answer: &[u8]) -> Option<Entry> {
    let (family, state) = (*answer.first()?, *answer.get(1)?);
    let address = answer.get(8..24)?;
    let address = if family == V4 { &address[..4] } else { address };
    let port = u16::from_be_bytes(*answer.get(4..)?.first_chunk()?);
    let number = |at: usize| Some(u32::from_ne_bytes(*answer.get(at..)?.first_chunk()?));
    let info = answer.get(72..).and_then(|rest| attribute(rest, INFO)).unwrap_or_default();
    let silent = |at: usize| {
        let bytes = info.get(at..).and_then(|bytes| bytes.first_chunk().copied());
        bytes.map_or(0, u32::from_ne_bytes)
    };
    Some(Entry {
        state,
        // One of IPv6 takes connections of IPv4 too.
        local: parse_ip(address)?.to_canonical(),
        port,
        owned: number(68)? != 0,
        unsent: number(60)?,
        silent: silent(LAST_DATA_SENT).min(silent(LAST_ACK_RECEIVED)),
    })
}

const BY_FAMILY: u16 = 20;
const INFO: u16 = 2;
const WITH_INFO: u8 = 1 << (INFO - 1);
const LAST_DATA_SENT: usize = 44;
const LAST_ACK_RECEIVED: usize = 56;

const ESTABLISHED: u8 = 1;
const SYN_RECEIVED: u8 = 3;
const FIN_WAIT_1: u8 = 4;
const FIN_WAIT_2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;
const STATES: u32 = 1 << ESTABLISHED
    | 1 << SYN_RECEIVED
    | 1 << FIN_WAIT_1
    | 1 << FIN_WAIT_2
    | 1 << CLOSE_WAIT
    | 1 << LAST_ACK
    | 1 << LISTEN
    | 1 << CLOSING;

/// As long as the kernel tracks a connection that only the client has ended.
const CLOSE_WAIT_MILLIS: u32 = 60_000;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;
    use crate::namespace::in_new;
    use crate::route::{RouteSocket, set_up};

    fn entry(state: u8, port: u16) -> Entry {
        let local = [10, 0, 0, 1].into();
        Entry { state, local, port, owned: true, unsent: 0, silent: 0 }
    }

    #[test]
    fn what_nobody_waits_for_is_not_open() {
        let open = |entries: &[Entry]| open_among(entries, &[[10, 0, 0, 1].into()].into());
        assert_eq!(open(&[entry(LISTEN, 80), entry(ESTABLISHED, 80), entry(LAST_ACK, 80)]), 2);
        assert_eq!(open(&[entry(LISTEN, 80), entry(ESTABLISHED, 4000)]), 0, "its own");
        let elsewhere = Entry { local: [10, 0, 0, 2].into(), ..entry(ESTABLISHED, 80) };
        assert_eq!(open(&[entry(LISTEN, 80), elsewhere]), 0);
        let silent = |unsent| Entry { unsent, silent: CLOSE_WAIT_MILLIS, ..entry(CLOSE_WAIT, 80) };
        assert_eq!(open(&[entry(LISTEN, 80), entry(CLOSE_WAIT, 80), silent(1)]), 2);
        assert_eq!(open(&[entry(LISTEN, 80), silent(0)]), 0, "forgotten");
        let left = Entry { owned: false, ..entry(FIN_WAIT_2, 80) };
        assert_eq!(open(&[entry(LISTEN, 80), entry(FIN_WAIT_2, 80), left]), 1);
    }

    #[test]
    fn the_kernel_is_asked_for_both_families() {
        in_new(|| {
            RouteSocket::open()?.request(set_up(1))?;
            let loopback = |text: &str| BTreeSet::from([text.parse::<IpAddr>().unwrap()]);
            // It listens for both families.
            let server = TcpListener::bind("[::]:80")?;
            assert_eq!(open_to(&loopback("127.0.0.1"))?, 0);
            let mut over_v4 = TcpStream::connect("127.0.0.1:80")?;
            let (mut taken, _) = server.accept()?;
            let _over_v6 = TcpStream::connect("[::1]:80")?;
            let _both = server.accept()?;
            assert_eq!(open_to(&loopback("127.0.0.1"))?, 1);
            assert_eq!(open_to(&loopback("::1"))?, 1);
            // Only one side has ended it: the answer may still come.
            over_v4.write_all(b"question")?;
            over_v4.shutdown(Shutdown::Write)?;
            assert_eq!(open_to(&loopback("127.0.0.1"))?, 1);
            taken.write_all(b"answer")?;
            drop(taken);
            drop(over_v4);
            assert_eq!(open_to(&loopback("127.0.0.1"))?, 0);
            Ok(())
        })
        .unwrap();
    }
}

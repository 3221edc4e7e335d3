//! Netlink without a library: messages, attributes, requests and dumps.
//!
//! Owns: the bytes of netlink and one blocking socket.
//! Does not know: what links, routes or tables are.
//! Invariant: a socket belongs to the network namespace of the thread that opened it, for ever.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A request under construction. Numbers are in the machine's order unless said otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// `header` is the family's fixed part (`ifinfomsg` and the like).
    pub(crate) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(ROOM_BYTES);
        bytes.resize(HEADER_BYTES, 0);
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        let mut message = Self { bytes };
        message.pad_and_push(header);
        message
    }

    /// Attributes without a message around them, to be put into one with [`Message::raw`].
    pub(crate) fn fragment() -> Self {
        Self { bytes: Vec::new() }
    }

    /// The bytes of a fragment.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.push_attribute(kind, value);
        self
    }

    /// Has room for so many bytes more.
    pub(crate) fn room(mut self, bytes: usize) -> Self {
        self.bytes.reserve(bytes);
        self
    }

    pub(crate) fn text(mut self, kind: u16, value: &str) -> Self {
        self.push_head(kind, value.len() + 1);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self
    }

    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Big-endian, as nftables wants them.
    pub(crate) fn number_be(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Attributes inside an attribute.
    pub(crate) fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        self.pad();
        let start = self.bytes.len();
        self.push_head(kind | NESTED, 0);
        let mut filled = fill(self);
        let length = (filled.bytes.len() - start) as u16;
        filled.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    /// A fixed structure in the middle of attributes.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.pad_and_push(bytes);
        self
    }

    fn flags(&self) -> u16 {
        u16::from_ne_bytes([self.bytes[6], self.bytes[7]])
    }

    fn push_attribute(&mut self, kind: u16, value: &[u8]) {
        self.push_head(kind, value.len());
        self.bytes.extend_from_slice(value);
    }

    fn push_head(&mut self, kind: u16, length: usize) {
        self.pad();
        let [a, b] = ((length + 4) as u16).to_ne_bytes();
        let [c, d] = kind.to_ne_bytes();
        self.bytes.extend_from_slice(&[a, b, c, d]);
    }

    fn pad_and_push(&mut self, bytes: &[u8]) {
        self.pad();
        self.bytes.extend_from_slice(bytes);
    }

    fn pad(&mut self) {
        let missing = self.bytes.len().wrapping_neg() % 4;
        self.bytes.extend_from_slice(&[0; 3][..missing]);
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        self.pad();
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// One message of an answer, without its header.
pub(crate) type Answer = Vec<u8>;

/// A socket in the namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What the answers to one packet were.
#[derive(Debug, Default)]
struct Outcome {
    answers: Vec<Answer>,
    /// By sequence number.
    errors: Vec<(u32, io::Error)>,
    /// A dump that something changed under.
    interrupted: bool,
}

impl Socket {
    /// `protocol` is NETLINK_ROUTE or NETLINK_NETFILTER.
    pub(crate) fn open(protocol: libc::c_int) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: three numbers; the result is a new descriptor that we own.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, known to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let limit = libc::timeval { tv_sec: ANSWER_LIMIT_SECONDS, tv_usec: 0 };
        set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &limit)?;
        // Strict: dumps may be filtered. Kernels before 4.20 do not know it, and do without.
        let one: libc::c_int = 1;
        for name in [NETLINK_GET_STRICT_CHK, NETLINK_CAP_ACK, NETLINK_EXT_ACK] {
            let _ = set_option(&fd, libc::SOL_NETLINK, name, &one);
        }
        // A whole load is one packet; without the right to force it, the limit of the host stands.
        for name in [libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
            let _ = set_option(&fd, libc::SOL_SOCKET, name, &BUFFER_BYTES);
        }
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// A socket that is told of changes; `groups` are numbers of multicast groups.
    pub(crate) fn listen(protocol: libc::c_int, groups: &[libc::c_int]) -> io::Result<Self> {
        let socket = Self::open(protocol)?;
        // That anything was said is enough; what is not taken would stand in the kernel's memory.
        set_option(&socket.fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &HEARD_BYTES)?;
        // SAFETY: all zeroes are a valid address: any number, no group.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        // SAFETY: the address is live and its size is given.
        let bound = unsafe {
            libc::bind(
                socket.fd.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                std::mem::size_of_val(&address) as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        socket.join(groups)?;
        Ok(socket)
    }

    pub(crate) fn join(&self, groups: &[libc::c_int]) -> io::Result<()> {
        self.change_groups(libc::NETLINK_ADD_MEMBERSHIP, groups)
    }

    pub(crate) fn leave(&self, groups: &[libc::c_int]) -> io::Result<()> {
        self.change_groups(libc::NETLINK_DROP_MEMBERSHIP, groups)
    }

    fn change_groups(&self, how: libc::c_int, groups: &[libc::c_int]) -> io::Result<()> {
        groups.iter().try_for_each(|group| set_option(&self.fd, libc::SOL_NETLINK, how, group))
    }

    /// Whether anything was heard since the last call; never waits. What was lost counts.
    pub(crate) fn heard(&mut self) -> bool {
        let mut heard = false;
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(_) => heard = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return heard,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => heard = true,
                Err(_) => return true,
            }
        }
    }

    /// Sends a request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, message: Message) -> io::Result<()> {
        self.batch(vec![message])
    }

    /// Sends requests as one packet; the first error of any of them is the result.
    pub(crate) fn batch(&mut self, messages: Vec<Message>) -> io::Result<()> {
        match self.batch_each(messages)?.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// Sends requests as one packet; answers what failed, by position.
    pub(crate) fn batch_each(
        &mut self,
        messages: Vec<Message>,
    ) -> io::Result<Vec<(usize, io::Error)>> {
        self.transact(messages, None)
    }

    /// Sends a transaction as one packet: `begin`, the requests, `end`. Asked for an
    /// acknowledgement is the last request: that of `end` itself comes from Linux 6.10 on only.
    pub(crate) fn transaction(
        &mut self,
        begin: Message,
        messages: Vec<Message>,
        end: Message,
    ) -> io::Result<()> {
        let all = std::iter::once(begin).chain(messages).collect();
        match self.transact(all, Some(end))?.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn transact(
        &mut self,
        messages: Vec<Message>,
        end: Option<Message>,
    ) -> io::Result<Vec<(usize, io::Error)>> {
        let first = self.sequence + 1;
        let bytes = messages.iter().map(|message| message.bytes.len() + 3).sum::<usize>();
        let mut packet = Vec::with_capacity(bytes + ROOM_BYTES);
        let count = messages.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        for (position, message) in messages.into_iter().enumerate() {
            let last = position + 1 == count;
            self.append(&mut packet, if last { with_flags(message, ACKNOWLEDGE) } else { message });
        }
        let awaited = self.sequence;
        if let Some(end) = end {
            self.append(&mut packet, end);
        }
        self.send(&packet)?;
        let errors = self.collect(awaited)?.errors.into_iter();
        Ok(errors.map(|(number, error)| ((number.saturating_sub(first)) as usize, error)).collect())
    }

    /// All answers to a request with the dump flag.
    pub(crate) fn dump(&mut self, message: Message) -> io::Result<Vec<Answer>> {
        for _ in 0..DUMP_ATTEMPTS {
            let outcome = self.exchange(with_flags(message.clone(), DUMP))?;
            if let Some((_, error)) = outcome.errors.into_iter().next() {
                return Err(error);
            }
            if !outcome.interrupted {
                return Ok(outcome.answers);
            }
        }
        Err(io::Error::other("it changes faster than it can be listed"))
    }

    /// The one answer to a request.
    pub(crate) fn ask(&mut self, message: Message) -> io::Result<Answer> {
        let outcome = self.exchange(with_flags(message, ACKNOWLEDGE))?;
        match outcome.errors.into_iter().next() {
            Some((_, error)) => Err(error),
            None => outcome
                .answers
                .into_iter()
                .next()
                .ok_or_else(|| io::Error::other("an acknowledgement without an answer")),
        }
    }

    fn exchange(&mut self, message: Message) -> io::Result<Outcome> {
        let mut packet = Vec::new();
        self.append(&mut packet, message);
        self.send(&packet)?;
        self.collect(self.sequence)
    }

    fn append(&mut self, packet: &mut Vec<u8>, message: Message) {
        self.sequence += 1;
        packet.extend_from_slice(&message.finish(self.sequence));
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is live and as long as said.
        let sent =
            unsafe { libc::send(self.fd.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn receive(&mut self, flags: libc::c_int) -> io::Result<usize> {
        // SAFETY: the buffer is live and as long as said.
        let count = unsafe {
            let buffer = self.buffer.as_mut_ptr().cast();
            libc::recv(self.fd.as_raw_fd(), buffer, self.buffer.len(), flags)
        };
        if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
    }

    /// Answers up to the end of a dump or the acknowledgement of the request `awaited`. After an
    /// error whatever has been answered is taken: the kernel answers before `send` returns, and
    /// what fails as a whole has no last acknowledgement.
    fn collect(&mut self, awaited: u32) -> io::Result<Outcome> {
        let mut outcome = Outcome::default();
        loop {
            let flags = if outcome.errors.is_empty() { 0 } else { libc::MSG_DONTWAIT };
            let count = match self.receive(flags) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if flags != 0 && error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(outcome);
                }
                Err(error) => return Err(error),
            };
            let mut rest = &self.buffer[..count];
            while let Some((kind, sequence, payload, tail)) = split(rest) {
                let interrupted = flags_of(rest) & DUMP_INTERRUPTED != 0;
                outcome.interrupted |= interrupted;
                rest = tail;
                match kind {
                    ERROR => {
                        let code = payload.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
                        if code != 0 {
                            outcome.errors.push((sequence, explained(-code, payload)));
                        } else if sequence == awaited {
                            return Ok(outcome);
                        }
                    }
                    DONE if sequence == awaited => return Ok(outcome),
                    DONE => {}
                    _ if sequence != awaited => {}
                    _ if outcome.answers.len() < ANSWERS_MAX => {
                        outcome.answers.push(payload.to_vec());
                    }
                    _ => return Err(io::Error::other("a dump without end")),
                }
            }
        }
    }
}

/// The kernel's words to an error are for those who look for its cause.
fn explained(code: i32, payload: &[u8]) -> io::Error {
    // The number, and the header of the request.
    let words = payload.get(20..).and_then(|rest| attribute(rest, ERROR_WORDS));
    if let Some(words) = words {
        let words = String::from_utf8_lossy(words);
        tracing::debug!(code, words = words.trim_end_matches('\0'), "the kernel refused");
    }
    io::Error::from_raw_os_error(code)
}

/// Attributes of `bytes`: kind without its flags, and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut all = Vec::new();
    while let Some(head) = bytes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & !(NESTED | BYTE_ORDER);
        let Some(value) = bytes.get(4..length) else { break };
        all.push((kind, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

/// The value of the first attribute of that kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).into_iter().find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn flags_of(bytes: &[u8]) -> u16 {
    bytes.get(6..8).map_or(0, |flags| u16::from_ne_bytes([flags[0], flags[1]]))
}

fn split(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
    let sequence = u32::from_ne_bytes(*bytes.get(8..12)?.first_chunk()?);
    let payload = bytes.get(HEADER_BYTES..length)?;
    let tail = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, sequence, payload, tail))
}

fn with_flags(mut message: Message, flags: u16) -> Message {
    let all = message.flags() | flags;
    message.bytes[6..8].copy_from_slice(&all.to_ne_bytes());
    message
}

pub(crate) fn set_option<T>(fd: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: `value` is live and its size is given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            std::mem::size_of::<T>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const NESTED: u16 = 0x8000;
const BYTE_ORDER: u16 = 0x4000;
const HEADER_BYTES: usize = 16;
/// A route takes as much, and most other requests do.
const ROOM_BYTES: usize = 96;
const NETLINK_CAP_ACK: libc::c_int = 10;
const NETLINK_EXT_ACK: libc::c_int = 11;
const NETLINK_GET_STRICT_CHK: libc::c_int = 12;
const DUMP_INTERRUPTED: u16 = 0x10;
const ERROR_WORDS: u16 = 1;

/// Of each direction; a load of ten thousand services is a few megabytes.
const BUFFER_BYTES: libc::c_int = 32 << 20;

/// Listing again helps when somebody else changed something meanwhile.
const DUMP_ATTEMPTS: u32 = 8;

/// The kernel takes its least for it.
const HEARD_BYTES: libc::c_int = 1;
/// The kernel answers at once; this is for a kernel in trouble.
const ANSWER_LIMIT_SECONDS: libc::time_t = 10;

/// As large as any packet that the kernel builds for a dump.
const RECEIVE_BYTES: usize = 32 * 1024;

/// Full routing tables have a million routes; nothing of ours is dumped from such a table whole.
const ANSWERS_MAX: usize = 2_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_in_order() {
        let message = Message::new(16, 0, &[1, 2, 3])
            .text(3, "eth0")
            .nested(18, |inner| inner.number(1, 7).bytes(2, &[9]))
            .number_be(4, 1);
        let bytes = message.finish(5);
        assert_eq!(bytes.len() % 4, 0);
        let (kind, sequence, payload, tail) = split(&bytes).unwrap();
        assert_eq!((kind, sequence, tail.len()), (16, 5, 0));
        assert_eq!(&payload[..3], &[1, 2, 3]);
        let all = attributes(&payload[4..]);
        assert_eq!(all[0], (3, &b"eth0\0"[..]));
        assert_eq!(attribute(all[1].1, 2), Some(&[9][..]));
        assert_eq!(all[2], (4, &[0, 0, 0, 1][..]));
    }

    #[test]
    fn broken_attributes_end_the_list() {
        for bytes in [&[][..], &[8, 0, 1], &[3, 0, 1, 0], &[200, 0, 1, 0, 5]] {
            assert_eq!(attributes(bytes), []);
        }
    }
}

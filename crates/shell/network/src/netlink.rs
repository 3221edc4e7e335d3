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
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        let mut message = Self { bytes };
        message.pad_and_push(header);
        message
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.push_attribute(kind, value);
        self
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
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
        self.bytes.extend([0, 0]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
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
        self.pad();
        self.bytes.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
    }

    fn pad_and_push(&mut self, bytes: &[u8]) {
        self.pad();
        self.bytes.extend(bytes);
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
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
    /// Number of the last request that is acknowledged.
    awaited: u32,
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
        let _ = set_option(&fd, libc::SOL_NETLINK, NETLINK_GET_STRICT_CHK, &one);
        Ok(Self { fd, sequence: 0, awaited: 0 })
    }

    /// Sends a request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, message: Message) -> io::Result<()> {
        self.send(vec![with_flags(message, ACKNOWLEDGE)])?;
        self.collect().map(drop)
    }

    /// Sends requests as one packet and waits for the last acknowledgement that is asked for. The
    /// first error of any of them is the result.
    pub(crate) fn batch(&mut self, messages: Vec<Message>) -> io::Result<()> {
        self.send(messages)?;
        self.collect().map(drop)
    }

    /// All answers to a request with the dump flag.
    pub(crate) fn dump(&mut self, message: Message) -> io::Result<Vec<Answer>> {
        self.send(vec![with_flags(message, DUMP)])?;
        self.collect()
    }

    fn send(&mut self, messages: Vec<Message>) -> io::Result<()> {
        let mut packet = Vec::new();
        for message in messages {
            self.sequence += 1;
            if message.flags() & ACKNOWLEDGE != 0 {
                self.awaited = self.sequence;
            }
            packet.extend(message.finish(self.sequence));
        }
        // SAFETY: the buffer is live and as long as said.
        let sent =
            unsafe { libc::send(self.fd.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Answers up to the end of a dump or the acknowledgement of the last request sent.
    fn collect(&mut self) -> io::Result<Vec<Answer>> {
        let mut answers = Vec::new();
        let mut buffer = vec![0u8; RECEIVE_BYTES];
        loop {
            // SAFETY: the buffer is live and as long as said.
            let count = unsafe {
                libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0)
            };
            if count < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            let mut rest = &buffer[..count as usize];
            while let Some((kind, sequence, payload, tail)) = split(rest) {
                rest = tail;
                match kind {
                    ERROR => {
                        let code = payload.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
                        if code != 0 {
                            return Err(io::Error::from_raw_os_error(-code));
                        }
                        if sequence == self.awaited {
                            return Ok(answers);
                        }
                    }
                    DONE => return Ok(answers),
                    _ if answers.len() < ANSWERS_MAX => answers.push(payload.to_vec()),
                    _ => return Err(io::Error::other("a dump without end")),
                }
            }
        }
    }
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

fn set_option<T>(fd: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
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
const NETLINK_GET_STRICT_CHK: libc::c_int = 12;

/// The kernel answers at once; this is for a kernel in trouble.
const ANSWER_LIMIT_SECONDS: libc::time_t = 10;

/// Larger than any packet the kernel builds for a dump.
const RECEIVE_BYTES: usize = 128 * 1024;

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

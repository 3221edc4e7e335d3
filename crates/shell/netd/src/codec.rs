//! Numbers, texts and addresses as bytes.
//!
//! Owns: the primitive forms of the protocol and of the state file, little-endian.
//! Does not know: what a message is.
//! Invariant: a reader never takes more than there is, and allocates no more than it has read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The peer is another program, or the stream is out of step.
    #[error("the message ends early")]
    Short,
    /// The same.
    #[error("a text is not UTF-8")]
    Text,
    /// The same.
    #[error("{0} has a value that it cannot have")]
    Value(&'static str),
}

/// Appends to a buffer.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn u8(&mut self, number: u8) {
        self.bytes.push(number);
    }

    pub(crate) fn flag(&mut self, flag: bool) {
        self.u8(u8::from(flag));
    }

    pub(crate) fn u16(&mut self, number: u16) {
        self.bytes.extend(number.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, number: u32) {
        self.bytes.extend(number.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, number: u64) {
        self.bytes.extend(number.to_le_bytes());
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A length and the bytes.
    pub(crate) fn blob(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.raw(bytes);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.blob(text.as_bytes());
    }

    /// Four flags in a byte.
    pub(crate) fn flags(&mut self, flags: [bool; 4]) {
        self.u8(flags.iter().rev().fold(0, |byte, flag| byte << 1 | u8::from(*flag)));
    }

    /// Names: a number, then each with its length. What is too long for a name is left out.
    pub(crate) fn texts<'t>(&mut self, texts: impl IntoIterator<Item = &'t String>) {
        let at = self.bytes.len();
        self.u16(0);
        let mut count = 0_u16;
        for text in texts {
            let Ok(length) = u8::try_from(text.len()) else { continue };
            if count == u16::MAX {
                break;
            }
            count += 1;
            self.u8(length);
            self.raw(text.as_bytes());
        }
        self.bytes[at..at + 2].copy_from_slice(&count.to_le_bytes());
    }

    pub(crate) fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.u32(items.len() as u32);
        for item in items {
            each(self, item);
        }
    }

    /// Zero is no address, four bytes are IPv4 and sixteen IPv6.
    pub(crate) fn address(&mut self, address: Option<IpAddr>) {
        match address {
            None => self.u8(0),
            Some(IpAddr::V4(v4)) => {
                self.u8(4);
                self.raw(&v4.octets());
            }
            Some(IpAddr::V6(v6)) => {
                self.u8(16);
                self.raw(&v6.octets());
            }
        }
    }
}

/// Takes from the front of a buffer.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn raw(&mut self, count: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn flag(&mut self) -> Result<bool, CodecError> {
        Ok(self.u8()? != 0)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, CodecError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn blob(&mut self) -> Result<&'a [u8], CodecError> {
        let length = self.u32()? as usize;
        self.raw(length)
    }

    pub(crate) fn str(&mut self) -> Result<&'a str, CodecError> {
        std::str::from_utf8(self.blob()?).map_err(|_| CodecError::Text)
    }

    pub(crate) fn text(&mut self) -> Result<String, CodecError> {
        self.str().map(str::to_owned)
    }

    pub(crate) fn flags(&mut self) -> Result<[bool; 4], CodecError> {
        let byte = self.u8()?;
        Ok([0, 1, 2, 3].map(|bit| byte >> bit & 1 != 0))
    }

    /// As [`Writer::texts`] writes them; all are read here, and given later.
    pub(crate) fn texts(&mut self) -> Result<Texts<'a>, CodecError> {
        let count = self.u16()?;
        let begin = self.rest;
        for _ in 0..count {
            let length = usize::from(self.u8()?);
            std::str::from_utf8(self.raw(length)?).map_err(|_| CodecError::Text)?;
        }
        Ok(Texts { left: count, rest: begin })
    }

    pub(crate) fn list<T>(
        &mut self,
        mut each: impl FnMut(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Vec<T>, CodecError> {
        let count = self.u32()?;
        let mut items = Vec::new();
        for _ in 0..count {
            // Every item takes at least a byte, so a false count ends with the bytes.
            if self.is_empty() {
                return Err(CodecError::Short);
            }
            items.push(each(self)?);
        }
        Ok(items)
    }

    pub(crate) fn address(&mut self) -> Result<Option<IpAddr>, CodecError> {
        Ok(match self.u8()? {
            0 => None,
            4 => Some(Ipv4Addr::from(self.array::<4>()?).into()),
            16 => Some(Ipv6Addr::from(self.array::<16>()?).into()),
            _ => return Err(CodecError::Value("an address")),
        })
    }

    pub(crate) fn net(&mut self) -> Result<IpNet, CodecError> {
        let address = self.address()?.ok_or(CodecError::Value("a subnet"))?;
        IpNet::new(address, self.u8()?).map_err(|_| CodecError::Value("a subnet"))
    }
}

/// Names where they lie.
#[derive(Clone, Debug)]
pub(crate) struct Texts<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> Iterator for Texts<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.left = self.left.checked_sub(1)?;
        let (length, rest) = self.rest.split_first()?;
        let (text, rest) = rest.split_at_checked(usize::from(*length))?;
        self.rest = rest;
        std::str::from_utf8(text).ok()
    }
}

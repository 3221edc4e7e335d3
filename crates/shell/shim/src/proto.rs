//! Frames between the daemon and a shim.
//!
//! Owns: the bytes of version 1. A frame is `length: u32`, `version: u8`, `type: u8`, then the
//! payload; numbers are little-endian, `length` counts everything after itself, a text is
//! `length: u32` and UTF-8.
//! Does not know: sockets.
//! Invariant: additions only. A reader skips types it does not know and ignores what follows the
//! fields it knows, because a shim outlives the daemon that started it: an old shim meets a new
//! daemon, and after a downgrade the other way round.

use std::fmt::Debug;

/// Version written into every frame.
pub const VERSION: u8 = 1;

/// Longest frame accepted, length field excluded.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// What the daemon tells a shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Send this signal to the container's first process.
    Signal(i32),
    /// Kill every process of the container.
    KillAll,
}

/// What a shim tells every daemon that is connected. Each new connection is told where things
/// stand at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The first frame on every connection.
    Hello { shim_pid: u32 },
    /// The program has been executed.
    Started { pid: u32, start_ticks: u64, at_ms: u64 },
    /// The container could not be started; the shim ends. `code` is the exit code to show.
    Failed { kind: FailureKind, code: i32, message: String },
    /// The container has ended and its exit record is on disk; the shim ends.
    Exited { code: i32, oom: bool, at_ms: u64 },
}

/// Whose fault a failed start is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The program is missing or not executable: `code` is 127 or 126.
    NotExecutable,
    /// The user or group named is not in the image.
    User,
    /// The working directory cannot be made or entered.
    Workdir,
    /// The disk is full.
    NoSpace,
    /// Anything else.
    Other,
}

/// The bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The peer is not a shim or a daemon of ours, or the stream is out of step.
    #[error("a frame of {length} bytes, the limit is {FRAME_BYTES_MAX}")]
    TooLong { length: usize },
    /// The same.
    #[error("a frame of type {kind} is too short")]
    Short { kind: u8 },
    /// The same.
    #[error("a text in a frame of type {kind} is not UTF-8")]
    Text { kind: u8 },
}

/// Collects bytes until frames are whole. Holds at most one frame and one read.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next request; `None` when more bytes are needed. Unknown types are skipped.
    pub fn next_request(&mut self) -> Result<Option<Request>, FrameError> {
        self.next_with(parse_request)
    }

    /// The next report; `None` when more bytes are needed. Unknown types are skipped.
    pub fn next_report(&mut self) -> Result<Option<Report>, FrameError> {
        self.next_with(parse_report)
    }

    fn next_with<T>(
        &mut self,
        parse: fn(u8, Payload<'_>) -> Result<Option<T>, FrameError>,
    ) -> Result<Option<T>, FrameError> {
        loop {
            let Some(head) = self.bytes.first_chunk::<4>() else { return Ok(None) };
            let length = u32::from_le_bytes(*head) as usize;
            if length > FRAME_BYTES_MAX {
                return Err(FrameError::TooLong { length });
            }
            if self.bytes.len() < 4 + length {
                return Ok(None);
            }
            let frame: Vec<u8> = self.bytes.drain(..4 + length).skip(4).collect();
            let [_version, kind, payload @ ..] = frame.as_slice() else {
                return Err(FrameError::Short { kind: 0 });
            };
            if let Some(item) = parse(*kind, Payload { kind: *kind, rest: payload })? {
                return Ok(Some(item));
            }
        }
    }
}

impl Request {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Signal(number) => frame(SIGNAL, &number.to_le_bytes()),
            Self::KillAll => frame(KILL_ALL, &[]),
        }
    }
}

impl Report {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        match self {
            Self::Hello { shim_pid } => {
                payload.extend(shim_pid.to_le_bytes());
                frame(HELLO, &payload)
            }
            Self::Started { pid, start_ticks, at_ms } => {
                payload.extend(pid.to_le_bytes());
                payload.extend(start_ticks.to_le_bytes());
                payload.extend(at_ms.to_le_bytes());
                frame(STARTED, &payload)
            }
            Self::Failed { kind, code, message } => {
                payload.push(kind.number());
                payload.extend(code.to_le_bytes());
                let message = cut(message, TEXT_BYTES_MAX);
                payload.extend((message.len() as u32).to_le_bytes());
                payload.extend(message.as_bytes());
                frame(FAILED, &payload)
            }
            Self::Exited { code, oom, at_ms } => {
                payload.extend(code.to_le_bytes());
                payload.push(u8::from(*oom));
                payload.extend(at_ms.to_le_bytes());
                frame(EXITED, &payload)
            }
        }
    }
}

impl FailureKind {
    const ALL: [(Self, u8); 5] = [
        (Self::NotExecutable, 1),
        (Self::User, 2),
        (Self::Workdir, 3),
        (Self::NoSpace, 4),
        (Self::Other, 5),
    ];

    fn number(self) -> u8 {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or(5, |(_, number)| *number)
    }

    /// A kind of a later version counts as `Other`.
    fn from_number(number: u8) -> Self {
        Self::ALL.iter().find(|(_, n)| *n == number).map_or(Self::Other, |(kind, _)| *kind)
    }
}

fn parse_request(kind: u8, mut payload: Payload<'_>) -> Result<Option<Request>, FrameError> {
    Ok(match kind {
        SIGNAL => Some(Request::Signal(i32::from_le_bytes(payload.take()?))),
        KILL_ALL => Some(Request::KillAll),
        _ => None,
    })
}

fn parse_report(kind: u8, mut payload: Payload<'_>) -> Result<Option<Report>, FrameError> {
    Ok(match kind {
        HELLO => Some(Report::Hello { shim_pid: u32::from_le_bytes(payload.take()?) }),
        STARTED => Some(Report::Started {
            pid: u32::from_le_bytes(payload.take()?),
            start_ticks: u64::from_le_bytes(payload.take()?),
            at_ms: u64::from_le_bytes(payload.take()?),
        }),
        FAILED => Some(Report::Failed {
            kind: FailureKind::from_number(u8::from_le_bytes(payload.take()?)),
            code: i32::from_le_bytes(payload.take()?),
            message: payload.text()?,
        }),
        EXITED => Some(Report::Exited {
            code: i32::from_le_bytes(payload.take()?),
            oom: payload.take::<1>()? != [0],
            at_ms: u64::from_le_bytes(payload.take()?),
        }),
        _ => None,
    })
}

/// What is left of a frame's payload.
struct Payload<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl Payload<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (head, rest) =
            self.rest.split_first_chunk().ok_or(FrameError::Short { kind: self.kind })?;
        self.rest = rest;
        Ok(*head)
    }

    fn text(&mut self) -> Result<String, FrameError> {
        let length = u32::from_le_bytes(self.take()?) as usize;
        let (text, rest) =
            self.rest.split_at_checked(length).ok_or(FrameError::Short { kind: self.kind })?;
        self.rest = rest;
        String::from_utf8(text.to_vec()).map_err(|_| FrameError::Text { kind: self.kind })
    }
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() + 2) as u32;
    let mut bytes = Vec::with_capacity(payload.len() + 6);
    bytes.extend(length.to_le_bytes());
    bytes.extend([VERSION, kind]);
    bytes.extend(payload);
    bytes
}

fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// Longest text in a frame; longer ones are cut.
const TEXT_BYTES_MAX: usize = 16 * 1024;

// Types are never used again for something else.
const SIGNAL: u8 = 1;
const KILL_ALL: u8 = 2;
const HELLO: u8 = 129;
const STARTED: u8 = 130;
const FAILED: u8 = 131;
const EXITED: u8 = 132;

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames as the first release wrote them. Never change a line; add new ones.
    fn recorded_requests_v1() -> Vec<(&'static str, Request)> {
        vec![("06000000 01 01 0f000000", Request::Signal(15)), ("02000000 01 02", Request::KillAll)]
    }

    fn recorded_reports_v1() -> Vec<(&'static str, Report)> {
        vec![
            ("06000000 01 81 39300000", Report::Hello { shim_pid: 12_345 }),
            (
                "16000000 01 82 07000000 0201000000000000 0300000000000000",
                Report::Started { pid: 7, start_ticks: 258, at_ms: 3 },
            ),
            (
                "0d000000 01 83 01 7f000000 02000000 6e6f",
                Report::Failed {
                    kind: FailureKind::NotExecutable,
                    code: 127,
                    message: "no".into(),
                },
            ),
            (
                "0f000000 01 84 89000000 01 0400000000000000",
                Report::Exited { code: 137, oom: true, at_ms: 4 },
            ),
        ]
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(|byte| *byte != b' ').collect();
        digits
            .chunks(2)
            .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn recorded_frames_of_version_1_are_read_and_written() {
        for (hex, request) in recorded_requests_v1() {
            let mut decoder = Decoder::default();
            decoder.push(&bytes(hex));
            assert_eq!(decoder.next_request(), Ok(Some(request.clone())), "{hex}");
            assert_eq!(request.encode(), bytes(hex));
        }
        for (hex, report) in recorded_reports_v1() {
            let mut decoder = Decoder::default();
            decoder.push(&bytes(hex));
            assert_eq!(decoder.next_report(), Ok(Some(report.clone())), "{hex}");
            assert_eq!(report.encode(), bytes(hex));
        }
    }

    #[test]
    fn frames_come_in_any_pieces() {
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        for (hex, _) in recorded_reports_v1() {
            for byte in bytes(hex) {
                decoder.push(&[byte]);
                while let Some(report) = decoder.next_report().unwrap() {
                    seen.push(report);
                }
            }
        }
        let all: Vec<Report> = recorded_reports_v1().into_iter().map(|(_, r)| r).collect();
        assert_eq!(seen, all);
    }

    #[test]
    fn a_later_version_may_add_types_and_fields() {
        let mut decoder = Decoder::default();
        decoder.push(&bytes("04000000 02 f0 0000"));
        decoder.push(&bytes("08000000 02 81 39300000 beef"));
        assert_eq!(decoder.next_report(), Ok(Some(Report::Hello { shim_pid: 12_345 })));
        assert_eq!(decoder.next_report(), Ok(None));
    }

    #[test]
    fn garbage_is_refused() {
        let cases: [(&str, FrameError); 4] = [
            ("ffffffff", FrameError::TooLong { length: 0xffff_ffff }),
            ("01000000 01", FrameError::Short { kind: 0 }),
            ("03000000 01 81 00", FrameError::Short { kind: 0x81 }),
            ("0c000000 01 83 01 7f000000 01000000 ff", FrameError::Text { kind: 0x83 }),
        ];
        for (hex, error) in cases {
            let mut decoder = Decoder::default();
            decoder.push(&bytes(hex));
            assert_eq!(decoder.next_report(), Err(error), "{hex}");
        }
    }
}

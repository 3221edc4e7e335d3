//! Files of a container's output.
//!
//! Owns: one JSON object a line, as docker's json-file driver writes them, and their rotation.
//! Does not know: who reads them.
//! Invariant: never blocks and never grows past `file_bytes × files` (plus one line): what cannot
//! be written, because the disk is full, is dropped and counted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base::Timestamp;
use serde::{Deserialize, Serialize};

/// One line of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// With its newline, when it had one.
    pub log: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// RFC 3339 with nanoseconds, UTC.
    pub time: String,
}

/// Which of a container's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Longest line kept whole; longer ones are split, the parts without a newline.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// Size of a file when none is given.
pub const FILE_BYTES_DEFAULT: u64 = 16 * 1024 * 1024;

/// Smallest size of a file: one line of the longest kind must fit.
pub const FILE_BYTES_MIN: u64 = 4 * 1024;

/// Most files of one container.
pub const FILES_MAX: u32 = 100;

/// Name of the `age`-th file; 0 is the one being written.
#[must_use]
pub fn file_path(current: &Path, age: u32) -> PathBuf {
    if age == 0 {
        return current.to_owned();
    }
    let mut name = current.as_os_str().to_owned();
    name.push(format!(".{age}"));
    PathBuf::from(name)
}

/// Writes what a container prints.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: File,
    size: u64,
    file_bytes: u64,
    files: u32,
    /// The unfinished line of each stream.
    partial: [Vec<u8>; 2],
    out: Vec<u8>,
    dropped: u64,
}

impl LogWriter {
    /// Appends to `path`. Zero for a bound means its default.
    pub fn open(path: &Path, file_bytes: u64, files: u32) -> io::Result<Self> {
        let file = open_append(path)?;
        let size = file.metadata()?.len();
        let file_bytes = match file_bytes {
            0 => FILE_BYTES_DEFAULT,
            bytes => bytes.max(FILE_BYTES_MIN),
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            file_bytes,
            files: files.clamp(1, FILES_MAX),
            partial: [Vec::new(), Vec::new()],
            out: Vec::new(),
            dropped: 0,
        })
    }

    /// Takes what was read from `stream` at `now_ns` (since the Unix epoch).
    pub fn push(&mut self, stream: Stream, mut bytes: &[u8], now_ns: u64) {
        let time = rfc3339_nanos(now_ns);
        while !bytes.is_empty() {
            let partial = &mut self.partial[stream as usize];
            let room = LINE_BYTES_MAX - partial.len();
            let window = &bytes[..bytes.len().min(room)];
            let newline = window.iter().position(|byte| *byte == b'\n');
            let (taken, rest) = bytes.split_at(newline.map_or(window.len(), |at| at + 1));
            partial.extend_from_slice(taken);
            bytes = rest;
            if newline.is_some() || partial.len() >= LINE_BYTES_MAX {
                self.end_line(stream, &time);
            }
        }
        self.flush();
    }

    /// Writes lines that have no newline yet; the container has ended.
    pub fn finish(&mut self, now_ns: u64) {
        let time = rfc3339_nanos(now_ns);
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.partial[stream as usize].is_empty() {
                self.end_line(stream, &time);
            }
        }
        self.flush();
        // The page cache keeps it; a crash of the machine may lose the last lines.
    }

    /// Lines that could not be written so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn end_line(&mut self, stream: Stream, time: &str) {
        let mut line = std::mem::take(&mut self.partial[stream as usize]);
        let split = split_point(&line);
        let before = self.out.len();
        encode_line(&mut self.out, &line[..split], stream, time);
        let added = (self.out.len() - before) as u64;
        // What is in `out` before this line still goes into the current file.
        if self.size + self.out.len() as u64 > self.file_bytes
            && self.size + before as u64 > 0
            && added > 0
        {
            let last = self.out.split_off(before);
            self.flush();
            self.rotate();
            self.out = last;
        }
        line.drain(..split);
        self.partial[stream as usize] = line;
    }

    fn flush(&mut self) {
        if self.out.is_empty() {
            return;
        }
        if self.file.write_all(&self.out).is_ok() {
            self.size += self.out.len() as u64;
        } else {
            // A torn line would make the file unreadable from there on.
            let _ = self.file.set_len(self.size);
            self.dropped += self.out.iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        self.out.clear();
    }

    /// Moves every file one up, drops the oldest, begins a new one. When that fails the current
    /// file goes on, which keeps the newest lines; the next line tries again.
    fn rotate(&mut self) {
        if self.files == 1 {
            let _ = fs::remove_file(&self.path);
        }
        for age in (1..self.files).rev() {
            let (from, to) = (file_path(&self.path, age - 1), file_path(&self.path, age));
            let _ = fs::rename(from, to);
        }
        if let Ok(file) = open_append(&self.path) {
            self.size = file.metadata().map_or(0, |metadata| metadata.len());
            self.file = file;
        }
    }
}

fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// Where a line may be cut without cutting a character: its end, unless it is a full part that
/// ends in the middle of one.
fn split_point(line: &[u8]) -> usize {
    if line.len() < LINE_BYTES_MAX || line.ends_with(b"\n") {
        return line.len();
    }
    let tail = line.len() - 3;
    match line[tail..].iter().position(|byte| *byte >= 0xc0) {
        Some(at) if std::str::from_utf8(&line[tail + at..]).is_err() => tail + at,
        _ => line.len(),
    }
}

fn encode_line(out: &mut Vec<u8>, line: &[u8], stream: Stream, time: &str) {
    out.extend(b"{\"log\":\"");
    escape(out, &String::from_utf8_lossy(line));
    out.extend(b"\",\"stream\":\"");
    out.extend(stream.name().as_bytes());
    out.extend(b"\",\"time\":\"");
    out.extend(time.as_bytes());
    out.extend(b"\"}\n");
}

fn escape(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte < 0x20 || matches!(byte, b'"' | b'\\')) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'\n' => out.extend(b"\\n"),
            b'\t' => out.extend(b"\\t"),
            b'\r' => out.extend(b"\\r"),
            byte @ (b'"' | b'\\') => out.extend([b'\\', byte]),
            byte => out.extend(format!("\\u{byte:04x}").as_bytes()),
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

fn rfc3339_nanos(ns: u64) -> String {
    let (year, month, day, hour, minute, second, _) = Timestamp(ns / 1_000_000).civil();
    let nanos = ns % 1_000_000_000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("shoal-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn log(&self) -> PathBuf {
            self.0.join("output.log")
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn entries(path: &Path) -> Vec<LogEntry> {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let dir = Dir::new("lines");
        let mut writer = LogWriter::open(&dir.log(), 0, 1).unwrap();
        let now = 1_795_373_999_123_456_789;
        writer.push(Stream::Stdout, b"one\ntw", now);
        writer.push(Stream::Stderr, b"err\xff\n", now);
        writer.push(Stream::Stdout, b"o\n\"q\\\t\x01\n", now);
        writer.push(Stream::Stdout, b"end", now);
        writer.finish(now);
        let seen: Vec<(String, String)> =
            entries(&dir.log()).into_iter().map(|entry| (entry.stream, entry.log)).collect();
        let line = |stream: &str, log: &str| (stream.to_owned(), log.to_owned());
        assert_eq!(
            seen,
            [
                line("stdout", "one\n"),
                line("stderr", "err\u{fffd}\n"),
                line("stdout", "two\n"),
                line("stdout", "\"q\\\t\u{1}\n"),
                line("stdout", "end"),
            ]
        );
        assert_eq!(entries(&dir.log())[0].time, "2026-11-22T18:59:59.123456789Z");
    }

    #[test]
    fn long_lines_are_split_between_characters() {
        let dir = Dir::new("long");
        let mut writer = LogWriter::open(&dir.log(), 0, 1).unwrap();
        let text = format!("{}é{}\n", "a".repeat(LINE_BYTES_MAX - 1), "b".repeat(10));
        writer.push(Stream::Stdout, text.as_bytes(), 0);
        let seen = entries(&dir.log());
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0].log, "a".repeat(LINE_BYTES_MAX - 1));
        assert_eq!(seen[1].log, format!("é{}\n", "b".repeat(10)));
    }

    #[test]
    fn files_rotate_and_stay_bounded() {
        let dir = Dir::new("rotate");
        let mut writer = LogWriter::open(&dir.log(), FILE_BYTES_MIN, 3).unwrap();
        for number in 0..1_000 {
            writer.push(Stream::Stdout, format!("line {number:04}\n").as_bytes(), number);
        }
        let mut names: Vec<String> = fs::read_dir(&dir.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["output.log", "output.log.1", "output.log.2"]);
        let mut lines = Vec::new();
        for age in [2, 1, 0] {
            let path = file_path(&dir.log(), age);
            assert!(fs::metadata(&path).unwrap().len() <= FILE_BYTES_MIN);
            lines.extend(entries(&path).into_iter().map(|entry| entry.log));
        }
        let first = 1_000 - lines.len();
        let expected: Vec<String> = (first..1_000).map(|n| format!("line {n:04}\n")).collect();
        assert_eq!(lines, expected);
        assert_eq!(writer.dropped(), 0);
    }

    #[test]
    fn one_file_starts_over_when_full() {
        let dir = Dir::new("single");
        let mut writer = LogWriter::open(&dir.log(), FILE_BYTES_MIN, 1).unwrap();
        for number in 0..100 {
            writer.push(Stream::Stdout, format!("line {number:04}\n").as_bytes(), number);
        }
        assert_eq!(entries(&dir.log()).last().unwrap().log, "line 0099\n");
        assert!(fs::metadata(dir.log()).unwrap().len() <= FILE_BYTES_MIN);
        assert!(!file_path(&dir.log(), 1).exists());
    }

    #[test]
    fn a_full_disk_drops_whole_lines_and_never_blocks() {
        let dir = Dir::new("full");
        let (none, flags) = (None::<&str>, nix::mount::MsFlags::empty());
        nix::mount::mount(none, &dir.0, Some("tmpfs"), flags, Some("size=64k")).unwrap();
        let mut writer = LogWriter::open(&dir.log(), 1024 * 1024, 2).unwrap();
        let ballast = dir.0.join("ballast");
        fs::write(&ballast, vec![0; 32 * 1024]).unwrap();
        for number in 0..2_000 {
            writer.push(Stream::Stdout, format!("line {number:04}\n").as_bytes(), number);
        }
        assert!(writer.dropped() > 1_000, "{}", writer.dropped());
        let before = entries(&dir.log()).len() as u64;
        assert_eq!(before + writer.dropped(), 2_000, "every line is whole or counted");
        fs::remove_file(ballast).unwrap();
        writer.push(Stream::Stdout, b"room again\n", 0);
        assert_eq!(entries(&dir.log()).last().unwrap().log, "room again\n");
        drop(writer);
        nix::mount::umount2(&dir.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

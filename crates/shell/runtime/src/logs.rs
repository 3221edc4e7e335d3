//! Reading a container's output, also while it is written and rotated.
//!
//! Owns: tail, since, until and follow over the current and the rotated files.
//! Does not know: the shim, but for the form of its files.
//! Invariant: lines come oldest first, each once, as long as their file is there; a file that is
//! rotated while it is read is read to its end, because it stays open.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use ports::runtime::{LogLine, LogOptions, LogStream};
use shim::logfile::{FILES_MAX, LogEntry, file_path};

/// Where a reader stands.
#[derive(Debug)]
pub(crate) struct LogReader {
    path: PathBuf,
    options: LogOptions,
    /// Files still to be read, oldest first; the last one may be growing.
    files: VecDeque<OpenFile>,
    /// Lines to pass over, for `tail`.
    skip: u64,
    ended: bool,
}

#[derive(Debug)]
struct OpenFile {
    reader: BufReader<File>,
    inode: u64,
    /// Begin of a line whose end is not there yet.
    partial: Vec<u8>,
}

impl LogReader {
    /// Opens all files of `path`. None at all is not an error: nothing was printed yet.
    pub(crate) fn open(path: &Path, options: LogOptions) -> io::Result<Self> {
        let mut files = open_all(path)?;
        let mut skip = 0;
        if let Some(tail) = options.tail {
            let mut counted = 0;
            let mut keep = 0;
            for file in files.iter_mut().rev() {
                keep += 1;
                counted += file.count_lines()?;
                if counted >= tail {
                    break;
                }
            }
            skip = counted.saturating_sub(tail);
            files.drain(..files.len() - keep);
        }
        Ok(Self { path: path.to_owned(), options, files, skip, ended: false })
    }

    /// The next lines, at most [`BATCH_LINES`]; empty when there are none now.
    pub(crate) fn next_batch(&mut self) -> io::Result<Vec<LogLine>> {
        let mut batch = Vec::new();
        while batch.len() < BATCH_LINES && !self.ended {
            let Some(file) = self.files.front_mut() else {
                self.files = open_all(&self.path)?;
                if self.files.is_empty() {
                    break;
                }
                continue;
            };
            match file.read_line()? {
                Some(line) => self.take(&line, &mut batch),
                None if self.files.len() > 1 => drop(self.files.pop_front()),
                None if self.follow_rotation()? => {}
                None => break,
            }
        }
        Ok(batch)
    }

    /// `until` has been reached: there will be no more lines.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    fn take(&mut self, line: &[u8], batch: &mut Vec<LogLine>) {
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        let Some(line) = parse_line(line) else { return };
        let millis = line.at_ns / 1_000_000;
        if self.options.since.is_some_and(|since| millis < since.0) {
            return;
        }
        if self.options.until.is_some_and(|until| millis > until.0) {
            self.ended = true;
            return;
        }
        batch.push(line);
    }

    /// At the end of the newest file we know: whether there are newer ones now.
    fn follow_rotation(&mut self) -> io::Result<bool> {
        let Some(last) = self.files.back() else { return Ok(false) };
        match std::fs::metadata(&self.path) {
            Ok(metadata) if metadata.ino() == last.inode => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        let mut files = open_all(&self.path)?;
        if let Some(at) = files.iter().position(|file| file.inode == last.inode) {
            files.drain(..=at);
        }
        // The file we have stays first: what was written to it since our last look comes before.
        let newer = !files.is_empty();
        self.files.extend(files);
        Ok(newer)
    }
}

impl OpenFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self { reader: BufReader::with_capacity(64 * 1024, file), inode, partial: Vec::new() })
    }

    /// A whole line with its newline; `None` while there is none.
    fn read_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.reader.read_until(b'\n', &mut self.partial)?;
        if !self.partial.ends_with(b"\n") {
            return Ok(None);
        }
        Ok(Some(std::mem::take(&mut self.partial)))
    }

    fn count_lines(&mut self) -> io::Result<u64> {
        let mut count = 0;
        loop {
            let bytes = self.reader.fill_buf()?;
            if bytes.is_empty() {
                break;
            }
            count += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
            let length = bytes.len();
            self.reader.consume(length);
        }
        self.reader.seek(SeekFrom::Start(0))?;
        Ok(count)
    }
}

/// All files, oldest first.
///
/// A rotation meanwhile moves every file one up, the oldest first, so that for a moment one number
/// is missing. Looking from the newest up meets every file at least once; one that was moved along
/// is met twice and taken once.
fn open_all(path: &Path) -> io::Result<VecDeque<OpenFile>> {
    let mut files: VecDeque<OpenFile> = VecDeque::new();
    let mut missing = 0;
    for age in 0..=FILES_MAX {
        match OpenFile::open(&file_path(path, age)) {
            Ok(file) => {
                missing = 0;
                if files.iter().all(|other| other.inode != file.inode) {
                    files.push_front(file);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing += 1,
            Err(error) => return Err(error),
        }
        if missing == 2 {
            break;
        }
    }
    Ok(files)
}

fn parse_line(line: &[u8]) -> Option<LogLine> {
    let entry: LogEntry = serde_json::from_slice(line).ok()?;
    let stream = match entry.stream.as_str() {
        "stderr" => LogStream::Stderr,
        _ => LogStream::Stdout,
    };
    Some(LogLine { stream, at_ns: parse_rfc3339_ns(&entry.time)?, data: Bytes::from(entry.log) })
}

/// Nanoseconds since the epoch of `2026-11-22T18:59:59.123456789Z` or with an offset.
pub(crate) fn parse_rfc3339_ns(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        let kept = &fraction[..digits.min(9)];
        nanos = kept.parse::<u64>().ok()? * 10u64.pow(9 - kept.len() as u32);
        rest = &fraction[digits..];
    }
    let offset_minutes: i64 = match rest.as_bytes().first()? {
        b'Z' | b'z' => 0,
        sign @ (b'+' | b'-') => {
            let hours: i64 = rest.get(1..3)?.parse().ok()?;
            let minutes: i64 = rest.get(4..6)?.parse().ok()?;
            (hours * 60 + minutes) * if *sign == b'+' { 1 } else { -1 }
        }
        _ => return None,
    };
    // Days of the civil date, counted from a March so that the leap day comes last.
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second;
    let seconds = seconds.checked_add_signed(-offset_minutes * 60)?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

/// Lines handed out at once.
pub(crate) const BATCH_LINES: usize = 512;

/// Pause before looking again when following.
pub(crate) const FOLLOW_PERIOD: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use shim::logfile::{LogWriter, Stream};

    #[test]
    fn a_gap_in_the_middle_of_a_rotation_hides_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let mut writer = LogWriter::open(&path, 4096, 20).unwrap();
        let mut push = |from: u32, to: u32| {
            for number in from..to {
                writer.push(Stream::Stdout, format!("{number}\n").as_bytes(), 0);
            }
        };
        push(0, 50);
        let mut reader = LogReader::open(&path, LogOptions::default()).unwrap();
        let mut seen = reader.next_batch().unwrap().len();
        push(50, 400);
        // As when the writer is just moving them: the third is missing.
        std::fs::rename(file_path(&path, 2), dir.path().join("aside")).unwrap();
        assert!(file_path(&path, 3).exists());
        let all = open_all(&path).unwrap();
        let newest_two_and_older = all.len();
        std::fs::rename(dir.path().join("aside"), file_path(&path, 2)).unwrap();
        assert_eq!(open_all(&path).unwrap().len(), newest_two_and_older + 1);
        loop {
            let batch = reader.next_batch().unwrap();
            if batch.is_empty() {
                break;
            }
            seen += batch.len();
        }
        assert_eq!(seen, 400);
    }

    #[test]
    fn times_with_fractions_and_offsets_are_read() {
        for (text, ns) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2026-11-22T18:59:59.123456789Z", Some(1_795_373_999_123_456_789)),
            ("2026-11-22T19:59:59.5+01:00", Some(1_795_373_999_500_000_000)),
            ("2000-02-29T00:00:00Z", Some(951_782_400_000_000_000)),
            ("yesterday", None),
            ("2026-13-01T00:00:00Z", None),
            ("2026-11-22T18:59:59", None),
        ] {
            assert_eq!(parse_rfc3339_ns(text), ns, "{text}");
        }
    }
}

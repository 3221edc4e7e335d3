//! What netd was told, kept for its successor.
//!
//! Owns: the state file: requests in their own frames, replayed by whoever reads it.
//! Does not know: what a request does.
//! Invariant: a file is replaced as a whole or appended to by one write; what is torn at its end
//! is not read.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::proto::{Decoder, Frame};

/// The state file of one run directory.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// `None` after an error: the next request writes the whole file.
    file: Option<File>,
    written: u64,
    appended: u64,
}

impl Journal {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { path: dir.join(FILE), file: None, written: 0, appended: 0 }
    }

    /// Gives all frames in order to `each`; what cannot be read ends it, without an error.
    pub(crate) async fn replay(&self, mut each: impl AsyncFnMut(Frame)) -> io::Result<()> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let (mut decoder, mut buffer) = (Decoder::default(), vec![0; READ_BYTES]);
        loop {
            let length = file.read(&mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            decoder.push(&buffer[..length]);
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => each(frame).await,
                    Ok(None) => break,
                    Err(_) => return Ok(()),
                }
            }
        }
    }

    /// The whole file should be written anew: there is none, or more has been appended than what
    /// a new one would save.
    pub(crate) fn wants_all(&self) -> bool {
        self.file.is_none() || self.appended > self.written.max(APPENDED_BYTES_MIN)
    }

    pub(crate) fn append(&mut self, frames: &[u8]) {
        let Some(file) = &mut self.file else { return };
        match file.write_all(frames) {
            Ok(()) => self.appended += frames.len() as u64,
            Err(_) => self.file = None,
        }
    }

    /// Replaces the file.
    pub(crate) fn write_all(&mut self, frames: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
        self.file = None;
        let fresh = self.path.with_extension(format!("new-{}", std::process::id()));
        let open =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh);
        let mut writer = BufWriter::with_capacity(READ_BYTES, open?);
        let mut written = 0;
        for frame in frames {
            written += frame.len() as u64;
            writer.write_all(&frame)?;
        }
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        std::fs::rename(&fresh, &self.path)?;
        (self.file, self.written, self.appended) = (Some(file), written, 0);
        Ok(())
    }

    pub(crate) fn forget(&mut self) {
        self.file = None;
        // It may never have been written.
        let _ = std::fs::remove_file(&self.path);
    }
}

const FILE: &str = "netd.state";
const READ_BYTES: usize = 64 * 1024;
const APPENDED_BYTES_MIN: u64 = 1024 * 1024;

//! Running programs and reading what they print.
//!
//! Owns: time limits of child processes and the text of their failures.
//! Does not know: hosts.
//! Invariant: no program runs longer than its limit.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// How a program ended.
#[derive(Debug, Clone)]
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
    /// What was run, for messages.
    pub line: String,
}

impl Answer {
    /// What was printed, when the program succeeded.
    ///
    /// # Errors
    /// What it printed when it failed.
    pub fn ok(self) -> Result<String> {
        if self.code != 0 {
            bail!("`{}` ended with {}: {}{}", self.line, self.code, self.out, self.err);
        }
        Ok(self.out)
    }

    /// What was printed as JSON.
    ///
    /// # Errors
    /// As [`Answer::ok`], or when it is no JSON.
    pub fn json(self) -> Result<Value> {
        let line = self.line.clone();
        let out = self.ok()?;
        serde_json::from_str(&out).with_context(|| format!("`{line}` printed no JSON: {out}"))
    }

    /// The lines that were printed.
    ///
    /// # Errors
    /// As [`Answer::ok`].
    pub fn lines(self) -> Result<Vec<String>> {
        Ok(self.ok()?.lines().map(str::to_owned).collect())
    }

    /// What was printed to standard error by a program that failed.
    ///
    /// # Errors
    /// When it succeeded.
    pub fn failure(self) -> Result<String> {
        if self.code == 0 {
            bail!("`{}` succeeded: {}", self.line, self.out);
        }
        Ok(self.err)
    }
}

/// Runs `command` to its end, or kills it after `limit`.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<Answer> {
    let line = format!("{command:?}").replace('"', "");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {line}"))?;
    let out = child.stdout.take().map(drain);
    let err = child.stderr.take().map(drain);
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if begun.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let read = |reader: Option<std::thread::JoinHandle<String>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    let (out, err) = (read(out), read(err));
    match status {
        Some(status) => Ok(Answer { code: status.code().unwrap_or(-1), out, err, line }),
        None => bail!("`{line}` did not end within {} s: {out}{err}", limit.as_secs()),
    }
}

/// Reads on a thread of its own, so that a full pipe stops nobody.
fn drain(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read until an error is what there is to show.
        drop(from.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs a tool of the system; it must succeed.
pub(crate) fn tool(program: &str, args: &[&str]) -> Result<String> {
    run(Command::new(program).args(args), Duration::from_secs(30))?.ok()
}

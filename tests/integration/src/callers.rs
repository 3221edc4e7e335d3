//! Callers that mean no good: silent, slow, talking garbage, half through a handshake.
//!
//! Owns: their connections, from inside a host's network namespace or to a socket in the file
//! system. Does not know: what a daemon should do about them.
//! Invariant: they end when dropped, all of them, and hold nothing of the daemon that they did not
//! get by connecting.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pki::{JoinToken, Pinned};
use tower::Service;

use crate::host::Host;

/// Where callers go.
#[derive(Debug, Clone)]
pub enum Target {
    /// A port, reached from inside the network namespace at this path.
    Port {
        namespace: PathBuf,
        address: SocketAddr,
    },
    Socket(PathBuf),
}

impl Target {
    /// The managers' port of `host`, called from `caller`.
    ///
    /// # Errors
    /// When the host's address is none.
    pub fn port(caller: &Host, host: &Host) -> Result<Self> {
        let namespace = PathBuf::from("/run/netns").join(caller.namespace());
        Ok(Self::Port { namespace, address: format!("{}:2377", host.address()).parse()? })
    }

    #[must_use]
    pub fn socket(host: &Host) -> Self {
        Self::Socket(host.socket())
    }

    /// Runs `call` on a thread of its own, where the target can be reached.
    fn spawn<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let target = self.clone();
        thread::spawn(move || {
            if let Self::Port { namespace, .. } = &target {
                // Only this thread moves; what it opens stays there.
                setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?;
            }
            call()
        })
    }

    fn connect(&self) -> io::Result<Box<dyn Line>> {
        Ok(match self {
            Self::Port { address, .. } => {
                Box::new(TcpStream::connect_timeout(address, CONNECT_MAX)?)
            }
            Self::Socket(path) => Box::new(UnixStream::connect(path)?),
        })
    }
}

/// A connection of either kind.
trait Line: Read + Write + Send {}
impl<T: Read + Write + Send> Line for T {}

/// Some callers at work until this is dropped.
pub struct Callers {
    end: Arc<AtomicBool>,
    work: Option<JoinHandle<Result<()>>>,
}

impl Callers {
    /// They say `words` at once and are silent from then on; without words they are idle.
    ///
    /// # Errors
    /// When the target takes no connections.
    pub fn silent(target: &Target, count: usize, words: &[u8]) -> Result<Self> {
        raise_open_files()?;
        let (of, words) = (target.clone(), words.to_vec());
        let opened = target.spawn(move || {
            let mut lines = Vec::new();
            for number in 0..count {
                let mut line = of.connect().with_context(|| format!("caller {number}"))?;
                // Being hung up on is an answer too.
                drop(line.write_all(&words));
                lines.push(line);
            }
            Ok(lines)
        });
        let lines = joined(opened)?;
        Ok(Self::until_dropped(move |end| {
            while !end() {
                thread::sleep(TICK);
            }
            drop(lines);
            Ok(())
        }))
    }

    /// They say `words`, a byte a second, and begin anew when they are hung up on.
    #[must_use]
    pub fn slow(target: &Target, count: usize, words: &[u8]) -> Self {
        let (of, words, ended) = (target.clone(), words.to_vec(), Arc::new(AtomicBool::new(false)));
        let end = Arc::clone(&ended);
        let work = target.spawn(move || {
            let mut lines: Vec<Option<(Box<dyn Line>, usize)>> =
                (0..count).map(|_| of.connect().ok().map(|line| (line, 0))).collect();
            while !end.load(Ordering::Relaxed) {
                for place in &mut lines {
                    let said = place.as_mut().is_some_and(|(line, at)| {
                        *at += 1;
                        words.get(*at - 1).is_some_and(|byte| line.write_all(&[*byte]).is_ok())
                    });
                    if !said {
                        *place = of.connect().ok().map(|line| (line, 0));
                    }
                }
                for _ in 0..10 {
                    if !end.load(Ordering::Relaxed) {
                        thread::sleep(TICK);
                    }
                }
            }
            Ok(())
        });
        Self { end: ended, work: Some(work) }
    }

    /// They finish their handshake, show no certificate and are silent from then on.
    ///
    /// # Errors
    /// When the target is no port or refuses them.
    pub fn strangers(target: &Target, count: usize, token: &str) -> Result<Self> {
        let Target::Port { address, .. } = target else { bail!("there is no TLS on a socket") };
        let uri: http::Uri = format!("http://{address}").parse()?;
        let pinned = pinned(token)?;
        let ended = Arc::new(AtomicBool::new(false));
        let (end, (tell, told)) = (Arc::clone(&ended), std::sync::mpsc::sync_channel(1));
        let work = target.spawn(move || {
            runtime()?.block_on(async move {
                let mut lines = Vec::new();
                for number in 0..count {
                    let line = pinned.connector().call(uri.clone()).await;
                    lines.push(line.with_context(|| format!("stranger {number}"))?);
                }
                let _ = tell.send(());
                while !end.load(Ordering::Relaxed) {
                    tokio::time::sleep(TICK).await;
                }
                Ok(())
            })
        });
        match told.recv() {
            Ok(()) => Ok(Self { end: ended, work: Some(work) }),
            Err(_) => joined(work).and_then(|()| bail!("the strangers ended early")),
        }
    }

    /// They send noise, wait for the end of the connection, and come again.
    #[must_use]
    pub fn noisy(target: &Target, count: usize, head: &[u8]) -> Vec<Self> {
        (0..count).map(|seed| Self::noise(target, head, seed as u64 + 1)).collect()
    }

    fn noise(target: &Target, head: &[u8], seed: u64) -> Self {
        let (of, head, ended) = (target.clone(), head.to_vec(), Arc::new(AtomicBool::new(false)));
        let end = Arc::clone(&ended);
        let work = target.spawn(move || {
            let mut state = seed;
            while !end.load(Ordering::Relaxed) {
                // A full queue of the listener passes.
                if let Ok(mut line) = of.connect() {
                    let noise: Vec<u8> = (0..NOISE_BYTES).map(|_| next_byte(&mut state)).collect();
                    drop(line.write_all(&head).and_then(|()| line.write_all(&noise)));
                }
                thread::sleep(TICK / 4);
            }
            Ok(())
        });
        Self { end: ended, work: Some(work) }
    }

    fn until_dropped(work: impl FnOnce(&dyn Fn() -> bool) -> Result<()> + Send + 'static) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let work = thread::spawn(move || work(&|| end.load(Ordering::Relaxed)));
        Self { end: ended, work: Some(work) }
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(Err(error)) = self.work.take().map(joined) {
            eprintln!("callers: {error:#}");
        }
    }
}

/// The first bytes of a client that means to join with this token.
///
/// # Errors
/// When the token is none.
pub fn client_hello(token: &str) -> Result<Vec<u8>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let uri: http::Uri = format!("http://{}", listener.local_addr()?).parse()?;
    let pinned = pinned(token)?;
    let dialled = thread::spawn(move || {
        // Nobody answers it; it ends when the other side does.
        runtime()?.block_on(async move { drop(pinned.connector().call(uri).await) });
        Ok(())
    });
    let (mut line, _) = listener.accept()?;
    let mut hello = vec![0; 4096];
    let count = line.read(&mut hello)?;
    hello.truncate(count);
    drop(line);
    joined(dialled)?;
    Ok(hello)
}

fn pinned(token: &str) -> Result<Pinned> {
    let token: JoinToken = token.trim().parse()?;
    Ok(Pinned::new(token.digest)?)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("a caller panicked"))?
}

/// Thousands of connections are more than a shell's usual limit.
fn raise_open_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// xorshift: noise that is the same each time.
fn next_byte(state: &mut u64) -> u8 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as u8
}

const CONNECT_MAX: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(100);
const NOISE_BYTES: usize = 64 * 1024;

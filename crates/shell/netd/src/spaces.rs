//! Work inside other network namespaces.
//!
//! Owns: going there and home again, for work that never waits here, for other work in a thread.
//! Does not know: what is opened there.
//! Invariant: work never runs in a namespace other than the one asked for: a thread that cannot
//! go home ends the process, which is started again.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

/// A handle to the thread.
#[derive(Debug)]
pub(crate) struct Spaces {
    jobs: SyncSender<Job>,
    home: File,
}

/// Which namespace it is, whatever path leads to it.
pub(crate) type SpaceId = (u64, u64);

struct Job {
    netns: PathBuf,
    work: Box<dyn FnOnce(io::Result<()>) + Send>,
}

impl Spaces {
    pub(crate) fn start() -> io::Result<Self> {
        let (jobs, receiver) = sync_channel(JOBS_MAX);
        let home = File::open(OWN_NAMESPACE)?;
        let there = home.try_clone()?;
        // It ends with the last sender, that is with the process.
        std::thread::Builder::new()
            .name("netns".into())
            .stack_size(STACK_BYTES)
            .spawn(move || serve(&receiver, &there))?;
        Ok(Self { jobs, home })
    }

    /// Does in the namespace that `netns` leads to what takes no longer than opening a socket, on
    /// the calling thread.
    pub(crate) fn visit<T>(
        &self,
        netns: &Path,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let _way_back = WayBack(&self.home);
        enter(netns).and_then(|()| work())
    }

    /// Runs `work` in the namespace that `netns` leads to.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        netns: &Path,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = oneshot::channel();
        let work = Box::new(move |entered: io::Result<()>| {
            // Nobody waits any more when the asker was aborted.
            let _ = done.send(entered.and_then(|()| work()));
        });
        match self.jobs.try_send(Job { netns: netns.to_owned(), work }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(io::ErrorKind::ResourceBusy.into()),
            Err(TrySendError::Disconnected(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        result.await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?
    }
}

fn serve(jobs: &Receiver<Job>, home: &File) {
    while let Ok(Job { netns, work }) = jobs.recv() {
        let _way_back = WayBack(home);
        work(enter(&netns));
    }
}

fn enter(netns: &Path) -> io::Result<()> {
    Ok(setns(&File::open(netns)?, CloneFlags::CLONE_NEWNET)?)
}

/// Taken also when work panics.
struct WayBack<'a>(&'a File);

impl Drop for WayBack<'_> {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            eprintln!("shoal netd: cannot leave a container's network namespace: {error}");
            std::process::exit(1);
        }
    }
}

/// The namespace that a path leads to.
pub(crate) fn space_id(netns: &Path) -> io::Result<SpaceId> {
    let metadata = std::fs::metadata(netns)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The calling thread's, not the process's.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";
/// Of tunnels: few, and each waits for its last one.
const JOBS_MAX: usize = 64;
const STACK_BYTES: usize = 128 * 1024;

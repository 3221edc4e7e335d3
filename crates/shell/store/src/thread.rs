//! The thread that Raft runs on.
//!
//! Owns: one single-threaded runtime at a raised priority, its start and its end.
//! Does not know: what runs on it.
//! Invariant: nothing on it blocks: files and the machine have threads of their own, so that
//! heartbeats are answered while every core is busy.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::limits::RAFT_THREAD_NICE;

/// The running thread.
pub(crate) struct RaftThread {
    handle: Handle,
    stop: watch::Sender<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl RaftThread {
    pub(crate) fn start() -> std::io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new().name("raft".to_owned()).spawn(move || {
            raise_priority();
            runtime.block_on(until(stopped));
            // Ends at once what is still running: openraft was shut down before.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, stop, thread: Mutex::new(Some(thread)) })
    }

    /// Runs `future` on the thread and waits for it, from any other runtime.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        self.handle.spawn(future).await.ok()
    }

    /// Ends the thread and waits for it. Calling it again does nothing.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("raft thread panicked");
        }
    }
}

impl Drop for RaftThread {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // An error means that the owner is gone, which is a stop as well.
    drop(stopped.wait_for(|stopped| *stopped).await);
}

fn raise_priority() {
    let own = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(own), RAFT_THREAD_NICE) {
        tracing::info!(%error, "raft thread keeps the usual priority");
    }
}

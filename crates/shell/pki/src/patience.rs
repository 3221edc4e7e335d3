//! How long a finished connection is borne that shows nothing or nobody.
//!
//! Owns: the deadline of a connection, and the list of those without a certificate.
//! Does not know: what is spoken over it.
//! Invariant: without a certificate nobody holds a connection for longer than a join takes, and
//! never more than a fixed number do; with one, nobody holds it who does not speak.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::limits::{GREETING_BYTES, GREETING_TIMEOUT, STRANGER_LIFE, STRANGERS_MAX};

/// What is left for one connection.
#[derive(Debug)]
pub(crate) struct Patience {
    begun: Instant,
    /// Bytes that are still missing in the peer's greeting.
    missing: usize,
    is_stranger: bool,
    /// `None` when the connection may last.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Ends when newer strangers need the place.
    place: Option<oneshot::Receiver<()>>,
}

impl Patience {
    pub(crate) fn new(is_stranger: bool) -> Self {
        let begun = Instant::now();
        let deadline = Some(Box::pin(sleep_until(begun + GREETING_TIMEOUT)));
        Self { begun, missing: GREETING_BYTES, is_stranger, deadline, place: None }
    }

    pub(crate) fn hold(&mut self, place: oneshot::Receiver<()>) {
        self.place = Some(place);
    }

    /// The peer has sent something.
    pub(crate) fn heard(&mut self, bytes: usize) {
        if self.missing == 0 {
            return;
        }
        self.missing = self.missing.saturating_sub(bytes);
        if self.missing == 0 {
            let life = self.begun + STRANGER_LIFE;
            self.deadline = self.is_stranger.then(|| Box::pin(sleep_until(life)));
        }
    }

    /// Whether the connection is to end now; else wakes the task when it is.
    pub(crate) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(io::ErrorKind::TimedOut.into());
        }
        if let Some(place) = &mut self.place
            && Pin::new(place).poll(cx).is_ready()
        {
            return Poll::Ready(io::ErrorKind::ConnectionAborted.into());
        }
        Poll::Pending
    }
}

/// The open connections of strangers, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    places: VecDeque<oneshot::Sender<()>>,
}

impl Strangers {
    /// A place for one more; when there is none, the oldest loses its.
    pub(crate) fn enter(&mut self) -> oneshot::Receiver<()> {
        if self.places.len() >= STRANGERS_MAX {
            self.places.retain(|place| !place.is_closed());
        }
        if self.places.len() >= STRANGERS_MAX {
            self.places.pop_front();
            tracing::debug!("oldest connection without certificate ended");
        }
        let (held, place) = oneshot::channel();
        self.places.push_back(held);
        place
    }
}

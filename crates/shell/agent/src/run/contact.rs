//! Whether a manager is heard, for those who otherwise judge by themselves.
//!
//! Owns: when one was last heard, and the word of it. Does not know: what is done about it.
//! Invariant: contact is lost after a silence as long as the one after which a manager suspects a
//! node, whether or not a session still stands.

use base::Millis;
use tokio::sync::watch;
use types::BadPath;
use types::limits::SUSPICION_PERIOD;

/// What an agent and the network of its node tell each other.
#[derive(Clone, Debug)]
pub struct PathLinks {
    /// Paths to peers that something is wrong with: the managers are told.
    pub bad: watch::Receiver<Vec<BadPath>>,
    /// Whether a manager is heard.
    pub contact: watch::Sender<bool>,
}

/// The same, with the time.
pub(super) struct Contact {
    pub(super) links: PathLinks,
    heard: Millis,
}

impl Contact {
    /// A node that has just begun is given the same time.
    pub(super) fn new(links: PathLinks, now: Millis) -> Self {
        links.contact.send_replace(true);
        Self { links, heard: now }
    }

    pub(super) fn heard(&mut self, now: Millis) {
        self.heard = now;
        self.links.contact.send_if_modified(|known| !std::mem::replace(known, true));
    }

    /// When to call [`Contact::expire`].
    pub(super) fn deadline(&self) -> Millis {
        match *self.links.contact.borrow() {
            true => Millis(self.heard.0 + SUSPICION_PERIOD.0),
            false => Millis::MAX,
        }
    }

    pub(super) fn expire(&mut self, now: Millis) {
        if self.deadline() <= now {
            self.links.contact.send_replace(false);
        }
    }
}

impl Drop for Contact {
    /// A node that is in no cluster judges nobody.
    fn drop(&mut self) {
        self.links.contact.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contact_is_lost_after_a_silence_and_back_with_the_first_word() {
        let (_bad, bad) = watch::channel(Vec::new());
        let contact = watch::Sender::new(false);
        let told = contact.subscribe();
        let mut known = Contact::new(PathLinks { bad, contact }, Millis(1_000));
        assert!(*told.borrow());
        known.expire(Millis(3_999));
        assert!(*told.borrow());
        known.expire(known.deadline());
        assert!(!*told.borrow());
        assert_eq!(known.deadline(), Millis::MAX);
        known.heard(Millis(9_000));
        assert!(*told.borrow());
        known.expire(Millis(12_000));
        assert!(!*told.borrow());
        drop(known);
        assert!(*told.borrow());
    }
}

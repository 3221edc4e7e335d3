//! Connections of who leaves: those that are open still, and flows that must look for another way.
//!
//! Owns: looking at tracked connections, apart from all other work on the node.
//! Does not know: how long anybody may wait.
//! Invariant: one look at a namespace answers everybody who waits, and looking takes at most a
//! tenth of a core: the kernel walks its whole table for each question. Whatever is tracked or not,
//! a connection that a container's programs have is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::chain;
use netplan::Scope;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::namespace::enter;
use crate::netlink::Socket;
use crate::node::Node;
use crate::{DataPath, sockets, tracking};

/// Addresses, by the namespaces that track what goes there.
pub(crate) type Places = BTreeMap<Scope, BTreeSet<IpAddr>>;

/// A container that leaves.
#[derive(Clone, Debug)]
pub(crate) struct Leaver {
    pub(crate) id: String,
    pub(crate) places: Places,
}

/// What the next look is for.
#[derive(Debug, Default)]
struct Questions {
    counted: Vec<(Leaver, oneshot::Sender<usize>)>,
    forgotten: Places,
    told: Vec<oneshot::Sender<()>>,
}

/// What waits for a look.
#[derive(Debug, Default)]
pub(crate) struct Looks(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    running: bool,
    questions: Questions,
}

impl Looks {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DataPath {
    /// Open TCP connections to the addresses, as far as they are tracked or end in the container's
    /// own namespace; those that do both count twice. `None`: nobody can say.
    pub(crate) async fn open_connections(&self, leaver: Leaver) -> Option<usize> {
        let (answer, answered) = oneshot::channel();
        self.ask(|questions| questions.counted.push((leaver, answer)));
        answered.await.ok()
    }

    /// Flows of datagrams to the addresses are looked at anew. Does not wait for it.
    pub(crate) fn forget_soon(&self, places: Places) {
        if !places.is_empty() {
            self.ask(|questions| join(&mut questions.forgotten, places));
        }
    }

    /// The same; returns when it is so.
    pub(crate) async fn forget(&self, places: Places) {
        let (tell, told) = oneshot::channel();
        self.ask(|questions| {
            join(&mut questions.forgotten, places);
            questions.told.push(tell);
        });
        let _ = told.await;
    }

    fn ask(&self, add: impl FnOnce(&mut Questions)) {
        let mut state = self.inner.looks.state();
        add(&mut state.questions);
        if !std::mem::replace(&mut state.running, true) {
            let path = self.clone();
            tokio::spawn(async move { path.look_until_answered().await });
        }
    }

    async fn look_until_answered(self) {
        loop {
            let questions = {
                let mut state = self.inner.looks.state();
                let questions = std::mem::take(&mut state.questions);
                if questions.counted.is_empty() && questions.forgotten.is_empty() {
                    state.running = false;
                    return;
                }
                questions
            };
            let (begun, path) = (Instant::now(), self.clone());
            let _ = tokio::task::spawn_blocking(move || path.answer(questions)).await;
            tokio::time::sleep((begun.elapsed() * LOOK_REST).min(LOOK_REST_MAX)).await;
        }
    }

    /// A namespace that is not there has no connections; what cannot be counted has no answer.
    fn answer(&self, questions: Questions) {
        let mut counted = Places::new();
        for (leaver, _) in &questions.counted {
            join(&mut counted, leaver.places.clone());
        }
        let mut scopes: BTreeSet<Scope> = counted.keys().copied().collect();
        scopes.extend(questions.forgotten.keys());
        let (mut open, mut unknown) = (BTreeMap::new(), BTreeSet::new());
        for scope in scopes {
            let (counted, forgotten) = (counted.remove(&scope), questions.forgotten.get(&scope));
            let namespace = self.inner.node().namespace_of(scope);
            let looked = namespace.and_then(|found| match found {
                Some(found) => look(&found, counted, forgotten.cloned()),
                None => Ok(BTreeMap::new()),
            });
            match looked {
                Ok(found) => drop(open.insert(scope, found)),
                Err(error) => {
                    tracing::warn!(?scope, error = %chain(&error), "connections not looked at");
                    unknown.insert(scope);
                }
            }
        }
        for (leaver, answer) in questions.counted {
            if leaver.places.keys().any(|scope| unknown.contains(scope)) {
                continue;
            }
            let of = |(scope, addresses): (&Scope, &BTreeSet<IpAddr>)| -> usize {
                let found = open.get(scope);
                addresses.iter().filter_map(|address| found?.get(address)).sum()
            };
            let tracked: usize = leaver.places.iter().map(of).sum();
            match self.ending_in(&leaver) {
                Ok(own) => drop(answer.send(tracked + own)),
                Err(error) => {
                    let id = &leaver.id;
                    tracing::warn!(id, error = %chain(&error), "its sockets were not looked at");
                }
            }
        }
        for tell in questions.told {
            let _ = tell.send(());
        }
    }

    /// A network without virtual addresses tracks nothing.
    fn ending_in(&self, leaver: &Leaver) -> io::Result<usize> {
        let addresses: BTreeSet<IpAddr> = leaver.places.values().flatten().copied().collect();
        if addresses.is_empty() {
            return Ok(0);
        }
        let namespace = self.inner.node().containers.open_one(&leaver.id);
        match namespace {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            namespace => enter(&namespace?, || sockets::open_to(&addresses)),
        }
    }
}

impl Node {
    /// Where connections to a container come through.
    pub(crate) fn places_of(&self, id: &str) -> Places {
        let mut places = Places::new();
        for end in self.planner.containers().get(id).into_iter().flat_map(|c| &c.links) {
            let scope = end.network.map_or(Scope::Mesh, Scope::Overlay);
            let addresses = end.v4.map(IpAddr::V4).into_iter().chain(end.v6.map(IpAddr::V6));
            places.entry(scope).or_default().extend(addresses);
        }
        places
    }

    fn namespace_of(&self, scope: Scope) -> io::Result<Option<OwnedFd>> {
        if scope == Scope::Host {
            return self.namespace.try_clone().map(Some);
        }
        match self.sandboxes.open_one(&Self::sandbox_name(scope)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.map(Some),
        }
    }
}

/// Open TCP connections by the address that they lead to; forgets flows of datagrams on the way.
fn look(
    namespace: &OwnedFd,
    counted: Option<BTreeSet<IpAddr>>,
    forgotten: Option<BTreeSet<IpAddr>>,
) -> io::Result<BTreeMap<IpAddr, usize>> {
    enter(namespace, move || {
        let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
        let mut open = BTreeMap::new();
        if tracking::is_empty(&mut socket)? {
            return Ok(open);
        }
        if let Some(addresses) = forgotten {
            tracking::forget_udp(&mut socket, &addresses)?;
        }
        if let Some(addresses) = counted {
            for connection in tracking::tcp_to(&mut socket, &addresses)? {
                *open.entry(connection.server).or_default() += usize::from(connection.is_open());
            }
        }
        Ok(open)
    })
}

fn join(places: &mut Places, more: Places) {
    for (scope, addresses) in more {
        places.entry(scope).or_default().extend(addresses);
    }
}

/// Between two looks, in times of what the last one took.
const LOOK_REST: u32 = 9;

/// The longest pause between two looks.
const LOOK_REST_MAX: Duration = Duration::from_secs(1);

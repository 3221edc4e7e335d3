//! Tunnels of a node: begun, begun again, ended.
//!
//! Owns: a task for each, which tries until it works, and what is seen meanwhile.
//! Does not know: how packets pass. Invariant: without tunnels there is no task and no thread, and
//! when a set was taken over, whatever is not in it has let go of its port and device, and no peer
//! that is not in it is served.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout};
use tunnel::Lifetime;

use super::serving::{Changed, Serving, Sight};
use super::{Tunnel, TunnelStatus};
use crate::site::Shared;

/// All tunnels.
#[derive(Debug, Default)]
pub(crate) struct Tunnels {
    hosted: BTreeMap<u32, Hosted>,
    /// Given up for a successor, and when.
    yielded: Option<(Instant, Vec<Tunnel>)>,
}

#[derive(Debug)]
struct Hosted {
    orders: watch::Sender<Order>,
    /// Nothing but this is served.
    taken: watch::Receiver<Option<Rc<Tunnel>>>,
    seen: Rc<RefCell<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Clone, Debug)]
enum Order {
    Serve(Rc<Tunnel>),
    /// End; the device stays for whoever is next, or not.
    End(Lifetime),
}

/// What is to be said of it.
#[derive(Debug, Default)]
struct Seen {
    sight: Option<Sight>,
    failure: Option<String>,
    starts: u64,
}

impl Tunnels {
    /// All that are wanted.
    pub(crate) fn wanted(&self) -> Vec<Tunnel> {
        if let Some((_, tunnels)) = &self.yielded {
            return tunnels.clone();
        }
        let wanted = |hosted: &Hosted| match &*hosted.orders.borrow() {
            Order::Serve(tunnel) => Some(Tunnel::clone(tunnel)),
            Order::End(_) => None,
        };
        self.hosted.values().filter_map(wanted).collect()
    }

    /// Makes these all that are served. Those that do not work are tried until they do.
    pub(crate) async fn set(&mut self, shared: &Rc<Shared>, wanted: Vec<Tunnel>) {
        self.yielded = None;
        let gone = self.hosted.extract_if(.., |generation, _| {
            !wanted.iter().any(|tunnel| tunnel.generation == *generation)
        });
        end(gone.map(|(_, hosted)| hosted).collect(), Lifetime::Temporary).await;
        let mut changing = Vec::new();
        for tunnel in wanted.into_iter().map(Rc::new) {
            let (generation, order) = (tunnel.generation, Order::Serve(Rc::clone(&tunnel)));
            match self.hosted.get(&generation) {
                Some(hosted) => {
                    hosted.orders.send_replace(order);
                    changing.push((hosted.taken.clone(), tunnel));
                }
                None => drop(self.hosted.insert(generation, Hosted::begin(shared, order))),
            }
        }
        for (mut taken, tunnel) in changing {
            let is_this = |taken: &Option<Rc<Tunnel>>| {
                taken.as_ref().is_some_and(|taken| Rc::ptr_eq(taken, &tunnel))
            };
            // One that takes longer makes very many new peers, and is not waited for.
            let _ = timeout(END_TIME, taken.wait_for(is_this)).await;
        }
    }

    /// Lets go of all ports and devices; the devices stay.
    pub(crate) async fn give_up(&mut self) {
        let wanted = self.wanted();
        end(std::mem::take(&mut self.hosted).into_values().collect(), Lifetime::Persistent).await;
        self.yielded = (!wanted.is_empty()).then(|| (Instant::now(), wanted));
    }

    /// Ends all, and their devices.
    pub(crate) async fn remove(&mut self) {
        self.yielded = None;
        end(std::mem::take(&mut self.hosted).into_values().collect(), Lifetime::Temporary).await;
    }

    /// Takes back what was given up when no successor came.
    pub(crate) async fn resume(&mut self, shared: &Rc<Shared>) {
        let due = self.yielded.as_ref().is_some_and(|(since, _)| since.elapsed() >= SUCCESSOR_TIME);
        if let Some((_, tunnels)) = self.yielded.take_if(|_| due) {
            self.set(shared, tunnels).await;
        }
    }

    /// As if the successor's time were over but for so much: a test need not wait for it.
    #[cfg(test)]
    pub(crate) fn let_successor_time_pass(&mut self, short_of: Duration) {
        if let Some((since, _)) = &mut self.yielded {
            *since = Instant::now() - (SUCCESSOR_TIME - short_of);
        }
    }

    pub(crate) fn statuses(&self) -> Vec<TunnelStatus> {
        let status = |(generation, hosted): (&u32, &Hosted)| {
            let seen = hosted.seen.borrow();
            let mut status = seen.sight.as_ref().map(Sight::status).unwrap_or_default();
            status.generation = *generation;
            status.starts = seen.starts;
            status.failure = seen.failure.clone().or(status.failure);
            status
        };
        self.hosted.iter().map(status).collect()
    }
}

/// All at one time.
async fn end(hosted: Vec<Hosted>, device: Lifetime) {
    for one in &hosted {
        one.orders.send_replace(Order::End(device));
    }
    for mut one in hosted {
        if timeout(END_TIME, &mut one.task).await.is_err() {
            // What it waited for ends by itself.
            one.task.abort();
        }
    }
}

impl Hosted {
    fn begin(shared: &Rc<Shared>, order: Order) -> Self {
        let (orders, receiver) = watch::channel(order);
        let (take, taken) = watch::channel(None);
        let (shared, seen) = (Rc::clone(shared), Rc::default());
        let keeper = Keeper { shared, orders: receiver, taken: take, seen: Rc::clone(&seen) };
        Self { orders, taken, seen, task: spawn_local(keeper.run()) }
    }
}

/// The task of one tunnel.
struct Keeper {
    shared: Rc<Shared>,
    orders: watch::Receiver<Order>,
    taken: watch::Sender<Option<Rc<Tunnel>>>,
    seen: Rc<RefCell<Seen>>,
}

/// How a time of service ended.
enum Ended {
    /// It is to be served otherwise, or not at all.
    Ordered,
    Failed(String),
}

impl Keeper {
    async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        loop {
            let order = self.orders.borrow_and_update().clone();
            let Order::Serve(tunnel) = order else { return };
            // As long as it has not begun, it serves nobody.
            self.taken.send_replace(Some(Rc::clone(&tunnel)));
            let begun = Instant::now();
            let failure = match Serving::begin(&self.shared.spaces, tunnel).await {
                Ok(serving) => match self.serve(serving).await {
                    Ended::Ordered => {
                        pause = PAUSE_MIN;
                        continue;
                    }
                    Ended::Failed(failure) => failure,
                },
                Err(fault) => base::chain(&fault).to_string(),
            };
            self.note_failure(failure);
            if begun.elapsed() >= STEADY_TIME {
                pause = PAUSE_MIN;
            }
            // Asked for otherwise, it is tried otherwise at once.
            match timeout(pause, self.orders.changed()).await {
                Ok(Ok(())) => pause = PAUSE_MIN,
                Ok(Err(_)) => return,
                Err(_) => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
    }

    fn note_failure(&self, failure: String) {
        let mut seen = self.seen.borrow_mut();
        if seen.failure.as_ref() != Some(&failure) {
            eprintln!("shoal netd: {failure}");
        }
        seen.failure = Some(failure);
    }

    /// Until it fails, or is to be something else; then it has let go of everything.
    async fn serve(&mut self, mut serving: Serving) -> Ended {
        self.seen.borrow_mut().starts += 1;
        let (ended, device) = loop {
            {
                let mut seen = self.seen.borrow_mut();
                seen.failure = None;
                seen.sight = Some(serving.sight());
            }
            if let Some(end) = self.wait(&mut serving).await {
                break end;
            }
        };
        self.seen.borrow_mut().sight = None;
        serving.end(device).await;
        ended
    }

    /// Until something is to be done, and does it.
    async fn wait(&mut self, serving: &mut Serving) -> Option<(Ended, Lifetime)> {
        let ordered = tokio::select! {
            biased;
            changed = self.orders.changed() => changed,
            () = sleep(CHECK_PERIOD) => {
                return Some((Ended::Failed(serving.failure()?), Lifetime::Persistent));
            }
        };
        let order = self.orders.borrow_and_update().clone();
        let tunnel = match order {
            // Whoever gave orders is gone.
            _ if ordered.is_err() => return Some((Ended::Ordered, Lifetime::Persistent)),
            Order::End(device) => return Some((Ended::Ordered, device)),
            Order::Serve(tunnel) => tunnel,
        };
        let ended = match serving.change(&self.shared.spaces, Rc::clone(&tunnel)).await {
            Ok(Changed::Taken) => {
                self.taken.send_replace(Some(tunnel));
                return None;
            }
            Ok(Changed::TooMuch) => Ended::Ordered,
            Err(fault) => Ended::Failed(base::chain(&fault).to_string()),
        };
        Some((ended, Lifetime::Persistent))
    }
}

/// A process that was ended needs a moment to let go of port and device.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// One that worked for so long did not fail by how it began.
const STEADY_TIME: Duration = Duration::from_secs(5);
/// How often it is looked whether packets can pass.
const CHECK_PERIOD: Duration = Duration::from_millis(500);
/// A thread may be waiting a second for a full link.
const END_TIME: Duration = Duration::from_millis(1_500);
/// A successor that begins so late does not begin.
const SUCCESSOR_TIME: Duration = Duration::from_secs(25);

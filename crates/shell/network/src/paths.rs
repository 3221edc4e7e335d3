//! The watch over the paths to this node's peers, and measurements on request.
//!
//! Owns: sockets for probes, the loops around the pure decisions.
//! Does not know: what a silent peer means for anybody.
//! Invariant: a namespace has one socket for the watch, opened when it is first needed; a socket
//! whose device is gone is opened anew.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base::Millis;
use netplan::paths::{AllPeers, MEASURE_TICK, Measure, Probe, TICK, Watch};
use netplan::{Scope, link};
use ports::runtime::RuntimeError;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use types::limits::SUSPICION_PERIOD;
use types::{BadPath, DirectoryUpdate, NetworkCheck, NetworkId, NodeId, PathCheck};

use crate::node::Node;
use crate::probe::{Asker, ProbeSocket};
use crate::{DataPath, failed};

/// Peers that do not answer by now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Silence {
    /// Their numbers.
    pub silent: BTreeSet<u32>,
    /// How many peers are watched.
    pub watched: usize,
}

/// What the watch and those who ask about it share.
#[derive(Debug)]
pub(crate) struct Paths {
    pub(crate) peers: watch::Sender<AllPeers>,
    silence: watch::Sender<Silence>,
    bad: watch::Sender<Vec<BadPath>>,
    alert: watch::Sender<bool>,
}

impl Paths {
    pub(crate) fn new() -> Self {
        Self {
            peers: watch::Sender::new(AllPeers::new()),
            silence: watch::Sender::default(),
            bad: watch::Sender::default(),
            alert: watch::Sender::new(false),
        }
    }
}

impl Node {
    /// A socket for probes in the namespace of a network; `None`: there is no device yet.
    fn open_probe(&mut self, scope: Scope) -> io::Result<Option<ProbeSocket>> {
        let Some(space) = self.spaces.get_mut(&scope) else { return Ok(None) };
        let Some(device) = space.index_of(link::VXLAN)? else { return Ok(None) };
        let token = self.next_token();
        let name = Self::sandbox_name(scope);
        self.sandboxes.enter(&name, move || ProbeSocket::open(device, token)).map(Some)
    }
}

impl DataPath {
    /// Peers that do not answer, as they are watched.
    #[must_use]
    pub fn silence(&self) -> watch::Receiver<Silence> {
        self.inner.paths.silence.subscribe()
    }

    /// Paths that something is wrong with.
    #[must_use]
    pub fn bad_paths(&self) -> watch::Receiver<Vec<BadPath>> {
        self.inner.paths.bad.subscribe()
    }

    /// Whether silence is to be noticed as soon as it can be.
    pub fn set_alert(&self, alert: bool) {
        self.inner.paths.alert.send_replace(alert);
    }

    /// Keeps new connections from these peers, by number, and from no others. The update has the
    /// tasks whose part in new connections has changed.
    pub async fn set_suspected(
        &self,
        suspected: BTreeSet<u32>,
    ) -> Result<DirectoryUpdate, RuntimeError> {
        let step = "suspect peers";
        let (update, departed) = self.with(step, move |node| node.set_suspected(suspected)).await?;
        self.forget_soon(departed);
        Ok(update)
    }

    /// Watches the paths until told to stop.
    pub async fn watch_peers(&self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut watcher = Watcher {
            path: self.clone(),
            begun: Instant::now(),
            watch: Arc::default(),
            askers: BTreeMap::new(),
            readers: JoinSet::new(),
        };
        let mut peers = self.inner.paths.peers.subscribe();
        peers.mark_changed();
        let mut ticks = tokio::time::interval(TICK.as_duration());
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for tick in (0..TICKS_PER_JUDGEMENT).cycle() {
            tokio::select! {
                biased;
                () = &mut shutdown => return,
                _ = ticks.tick() => {}
            }
            if peers.has_changed().unwrap_or_default() {
                let all = peers.borrow_and_update().clone();
                watcher.set_peers(&all);
            }
            watcher.ask().await;
            if tick + 1 == TICKS_PER_JUDGEMENT {
                watcher.judge();
            }
        }
    }

    /// Compares one network with the plan, and measures the paths to its peers.
    pub(crate) async fn look_at(&self, network: NetworkId) -> Result<NetworkCheck, RuntimeError> {
        let problems = self.check(network).await?;
        let strangers = self.with("look for strangers", move |n| n.strangers(network)).await?;
        let paths = match tokio::time::timeout(MEASURE_LIMIT, self.measure(network)).await {
            Ok(paths) => paths?,
            Err(_) => return Err(failed("measure the paths", &"it takes too long")),
        };
        let step = "look at the tunnels";
        let paths = self.with(step, move |node| node.check_tunnels(network, paths)).await?;
        Ok(NetworkCheck { network, problems, paths, strangers })
    }

    /// The other nodes of a network.
    pub(crate) fn peers_of(&self, network: NetworkId) -> Vec<NodeId> {
        let all = self.inner.paths.peers.borrow();
        let peers = all.values().find(|peers| peers.network == network);
        peers.into_iter().flat_map(|of| of.peers.values()).map(|peer| peer.node).collect()
    }

    async fn measure(&self, network: NetworkId) -> Result<Vec<PathCheck>, RuntimeError> {
        let peers = self.inner.paths.peers.borrow().clone();
        let peers = peers.into_iter().find(|(_, peers)| peers.network == network);
        let Some((scope, peers)) = peers else { return Ok(Vec::new()) };
        let socket = self.with("open a socket for probes", move |n| n.open_probe(scope)).await?;
        let asker = socket.map(Asker::new).transpose();
        let asker = asker.map_err(|error| failed("open a socket for probes", &error))?;
        let mut measure = Measure::new(&peers);
        let begun = Instant::now();
        let mut ticks = tokio::time::interval(MEASURE_TICK.as_duration());
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let answers = async {
                match &asker {
                    Some(asker) => asker.answers().await,
                    // Without a device everybody is silent.
                    None => std::future::pending().await,
                }
            };
            let answers = tokio::select! {
                biased;
                _ = ticks.tick() => None,
                answers = answers => Some(answers),
            };
            match answers {
                Some(Ok(answers)) => {
                    for echo in answers {
                        measure.answered(echo.number, echo.size, echo.round_us);
                    }
                }
                Some(Err(error)) => return Err(failed("hear answers to probes", &error)),
                None => {
                    let now = Millis::from_duration(begun.elapsed());
                    let Some(all) = measure.next(now) else { return Ok(measure.checks()) };
                    for (number, size) in all {
                        // What cannot be sent is not answered, which says enough.
                        let _ = asker.as_ref().map(|asker| asker.send(number, size));
                    }
                }
            }
        }
    }
}

/// The watch while it runs.
struct Watcher {
    path: DataPath,
    begun: Instant,
    watch: Arc<Mutex<Watch>>,
    askers: BTreeMap<Scope, (Arc<Asker>, AbortHandle)>,
    /// One for each socket; they end with the watch.
    readers: JoinSet<()>,
}

impl Watcher {
    fn set_peers(&mut self, all: &AllPeers) {
        lock(&self.watch).set_peers(all);
        self.askers.retain(|scope, (_, reader)| {
            let stays = all.contains_key(scope);
            if !stays {
                reader.abort();
            }
            stays
        });
    }

    async fn ask(&mut self) {
        while self.readers.try_join_next().is_some() {}
        let probes = {
            let mut watch = lock(&self.watch);
            watch.set_alert(*self.path.inner.paths.alert.borrow());
            watch.next(Millis::from_duration(self.begun.elapsed()))
        };
        let mut failing = BTreeSet::new();
        for probe in probes {
            if !failing.contains(&probe.scope) && !self.ask_one(&probe).await {
                // Its device may be another one by now.
                failing.insert(probe.scope);
                if let Some((_, reader)) = self.askers.remove(&probe.scope) {
                    reader.abort();
                }
            }
        }
    }

    /// `false`: there is no way to ask on this network.
    async fn ask_one(&mut self, probe: &Probe) -> bool {
        if !self.askers.contains_key(&probe.scope) && !self.open(probe.scope).await {
            return false;
        }
        let Some((asker, _)) = self.askers.get(&probe.scope) else { return false };
        match asker.send(probe.number, probe.size) {
            // Larger than the device takes just now: it will not be answered.
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => true,
            // A full queue is no reason to begin anew.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            sent => sent.is_ok(),
        }
    }

    async fn open(&mut self, scope: Scope) -> bool {
        let opened = self.path.with("open a socket for probes", move |n| n.open_probe(scope)).await;
        let asker = match opened {
            Ok(Some(socket)) => Asker::new(socket),
            Ok(None) => return false,
            Err(error) => {
                tracing::debug!(?scope, %error, "the peers of a network are not watched");
                return false;
            }
        };
        let Ok(asker) = asker.map(Arc::new) else { return false };
        let (watch, ears) = (Arc::clone(&self.watch), Arc::clone(&asker));
        let reader = self.readers.spawn(async move {
            while let Ok(answers) = ears.answers().await {
                let mut watch = lock(&watch);
                for echo in answers {
                    watch.answered(scope, echo.number, echo.size);
                }
            }
        });
        self.askers.insert(scope, (asker, reader));
        true
    }

    fn judge(&self) {
        let now = Millis::from_duration(self.begun.elapsed());
        let (silence, bad) = {
            let watch = lock(&self.watch);
            let silent = watch.silent(now, SUSPICION_PERIOD);
            (Silence { silent, watched: watch.watched() }, watch.bad_paths(now))
        };
        set_if_other(&self.path.inner.paths.silence, silence);
        set_if_other(&self.path.inner.paths.bad, bad);
    }
}

fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn set_if_other<T: PartialEq>(sender: &watch::Sender<T>, now: T) {
    sender.send_if_modified(|known| {
        let other = *known != now;
        *known = now;
        other
    });
}

/// How many rounds of questions one judgement waits for.
const TICKS_PER_JUDGEMENT: u32 = 5;

/// Of all stages of a measurement, with room for a busy node.
const MEASURE_LIMIT: Duration = Duration::from_secs(20);

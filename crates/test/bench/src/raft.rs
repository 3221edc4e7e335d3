//! Commits of the managers' log: three members over loopback, each with its own log and fsync.
//!
//! Owns: a cluster in one process with a machine that does nothing but count.
//! Does not know: the state of the product.
//! Invariant: a commit is counted when it is applied on the leader, after a majority synced it.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base::{Id, Millis};
use futures::StreamExt;
use pki::{DataKey, NodeKey, NodeTls, Role, RootCa, Subject, accept_stream, wall_now};
use store::{ApplyHalt, Machine, Options, RaftStore, Tuning};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What one run has shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Commits {
    pub clients: usize,
    pub commits: u64,
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
}

/// Bytes of each proposal.
pub const PROPOSAL_BYTES: usize = 1_024;

/// `clients` propose one after the other, each waiting for its answer, for `time`.
///
/// # Errors
/// When the cluster cannot be made in `dir`, or a proposal fails.
pub async fn commits(dir: &Path, clients: usize, time: Duration) -> Result<Commits> {
    let cluster = Cluster::start(dir, 3).await?;
    let leader = cluster.leader().await?;
    let until = Instant::now() + time;
    let begun = Instant::now();
    let tasks: Vec<JoinHandle<Result<Vec<Duration>>>> = (0..clients)
        .map(|_| {
            let store = leader.clone();
            tokio::spawn(async move {
                let mut waits = Vec::new();
                while Instant::now() < until {
                    let begun = Instant::now();
                    store.propose(vec![b'x'; PROPOSAL_BYTES]).await?;
                    waits.push(begun.elapsed());
                }
                Ok(waits)
            })
        })
        .collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await??);
    }
    let elapsed = begun.elapsed();
    cluster.stop().await;
    waits.sort_unstable();
    let at = |share: f64| waits.get((waits.len() as f64 * share) as usize).copied();
    Ok(Commits {
        clients,
        commits: waits.len() as u64,
        per_second: waits.len() as f64 / elapsed.as_secs_f64(),
        p50: at(0.5).context("nothing was committed")?,
        p99: at(0.99).context("nothing was committed")?,
    })
}

/// From the loss of the leader to the next stored proposal, `trials` times.
///
/// # Errors
/// When the cluster cannot be made in `dir`, or nobody takes over.
pub async fn failover(dir: &Path, trials: usize) -> Result<Vec<Duration>> {
    let mut waits = Vec::new();
    for trial in 0..trials {
        let cluster = Cluster::start(&dir.join(trial.to_string()), 3).await?;
        let leader = cluster.leader().await?;
        leader.propose(vec![b'x'; PROPOSAL_BYTES]).await?;
        let begun = Instant::now();
        leader.shutdown().await;
        loop {
            let next = cluster.leader().await?;
            if next.propose(vec![b'x'; PROPOSAL_BYTES]).await.is_ok() {
                break;
            }
        }
        waits.push(begun.elapsed());
        cluster.stop().await;
    }
    waits.sort_unstable();
    Ok(waits)
}

/// Counts entries.
#[derive(Clone, Copy)]
struct Counter(u64);

impl Machine for Counter {
    type Reply = u64;
    type View = u64;

    fn apply(&mut self, _index: u64, _payload: &[u8]) -> Result<u64, ApplyHalt> {
        self.0 += 1;
        Ok(self.0)
    }

    fn view(&self) -> u64 {
        self.0
    }

    fn encode_snapshot(
        view: &u64,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        sink(&view.to_le_bytes())
    }

    fn restore(source: &mut dyn Read) -> io::Result<Self> {
        let mut bytes = [0; 8];
        source.read_exact(&mut bytes)?;
        Ok(Self(u64::from_le_bytes(bytes)))
    }
}

struct Cluster {
    members: Vec<(RaftStore<Counter>, JoinHandle<()>)>,
}

impl Cluster {
    async fn start(dir: &Path, count: u64) -> Result<Self> {
        let root = RootCa::generate(wall_now())?;
        let mut cluster = Self { members: Vec::new() };
        for number in 1..=count {
            let (node, address) = cluster.add(dir, &root, number).await?;
            if number == 1 {
                cluster.members[0].0.bootstrap().await?;
            } else {
                let leader = cluster.leader().await?;
                leader.add_learner(number, node, &address).await?;
                leader.promote(number).await?;
            }
        }
        Ok(cluster)
    }

    async fn add(&mut self, dir: &Path, root: &RootCa, number: u64) -> Result<(Id, String)> {
        let node = Id::from_u128(u128::from(number)).context("numbers begin at 1")?;
        let tls = identity(root, node)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let options = Options {
            dir: dir.join(format!("member-{number}")),
            key: DataKey::generate()?,
            raft_id: number,
            node,
            address: address.clone(),
            tls: Arc::clone(&tls),
            machine: Counter(0),
            on_apply: Box::new(|_| {}),
            tuning: Tuning::default(),
        };
        std::fs::create_dir_all(dir)?;
        let store = RaftStore::open(options).await?;
        let mut incoming = accept_stream(listener, &tls)?.divert(store.divert());
        let serving = tokio::spawn(async move { while let Some(Ok(_)) = incoming.next().await {} });
        self.members.push((store, serving));
        Ok((node, address))
    }

    async fn leader(&self) -> Result<RaftStore<Counter>> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            for (store, _) in &self.members {
                if store.leadership().borrow().ready {
                    return Ok(store.clone());
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        bail!("no member leads")
    }

    async fn stop(self) {
        for (store, serving) in self.members {
            serving.abort();
            store.shutdown().await;
        }
    }
}

fn identity(root: &RootCa, node: Id) -> Result<Arc<NodeTls>> {
    let key = NodeKey::generate()?;
    let cluster = Id::from_u128(1).context("one is an identity")?;
    let subject = Subject { node, role: Role::Manager, cluster };
    let expiry = Millis::from_secs(24 * 3_600);
    let issued = root.issue(&key.request()?, &subject, expiry, wall_now())?;
    Ok(NodeTls::new(&key, &issued.chain_pem, &root.certificate_pem())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_measurements_run() {
        let dir = tempfile::tempdir().unwrap();
        for clients in [1, 500] {
            let path = dir.path().join(clients.to_string());
            let found = commits(&path, clients, Duration::from_secs(3)).await.unwrap();
            println!("{found:?}");
            assert!(found.commits > 20);
        }
        let waits = failover(&dir.path().join("failover"), 20).await.unwrap();
        println!("{waits:?}");
    }
}

//! A node that hears no manager suspects those of its peers that do not answer.
//!
//! Owns: when silence counts, and telling the data path and the names of it.
//! Does not know: how peers are asked, what becomes of a suspected one's connections.
//! Invariant: nobody is suspected while a manager is heard: then it is the managers who judge.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use types::EndpointPart;

use super::{NodeNetwork, RETRY_PERIOD};

/// What has been carried out.
#[derive(Default)]
struct Done {
    suspected: BTreeSet<u32>,
    /// What the names have not been told yet.
    owed: Vec<EndpointPart>,
}

impl NodeNetwork {
    /// Suspects and stops suspecting, until told to stop.
    pub(crate) async fn suspect(&self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = std::pin::pin!(shutdown);
        let (mut silence, mut contact) = (self.path.silence(), self.contact.subscribe());
        let mut done = Done::default();
        loop {
            let heard = *contact.borrow_and_update();
            self.path.set_alert(!heard);
            let wanted = match (heard, silence.borrow_and_update().clone()) {
                (true, _) => BTreeSet::new(),
                (false, now) => network::suspects(now.silent, now.watched),
            };
            let result = self.carry_out(wanted, &mut done).await;
            if let Err(error) = &result {
                tracing::warn!(error = format!("{error:#}"), "suspicion is not carried out");
            }
            tokio::select! {
                biased;
                () = &mut shutdown => return,
                () = tokio::time::sleep(RETRY_PERIOD), if result.is_err() => {}
                Ok(()) = contact.changed() => {}
                Ok(()) = silence.changed() => {}
            }
        }
    }

    async fn carry_out(&self, wanted: BTreeSet<u32>, done: &mut Done) -> Result<()> {
        if wanted == done.suspected && done.owed.is_empty() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        if wanted != done.suspected {
            tracing::info!(count = wanted.len(), "suspected peers get no new connections");
            let update = self.path.set_suspected(wanted.clone()).await.context("data path")?;
            done.suspected = wanted;
            let newer = |one: &EndpointPart| {
                let new = &update.endpoints;
                new.iter().any(|new| (new.network, new.task) == (one.network, one.task))
            };
            done.owed.retain(|one| !newer(one));
            done.owed.extend(update.endpoints);
        }
        let index = self.index.load(Ordering::Relaxed);
        let endpoints = done.owed.clone();
        let update = types::DirectoryUpdate { index, endpoints, ..Default::default() };
        if !update.is_empty() {
            self.names.update(&update).await.context("names")?;
        }
        done.owed.clear();
        Ok(())
    }
}

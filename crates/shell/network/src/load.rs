//! Networks that come with very many endpoints, made while they are planned.
//!
//! Owns: which networks are loaded so, and the thread that lays their routes meanwhile.
//! Does not know: what is planned.
//! Invariant: a network that was not loaded in full is compared as a whole afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::take;
use std::sync::mpsc::{Receiver, sync_channel};

use netplan::{Begun, Changes, ROUTES_AT_ONCE, RouteKey, RouteTo, Scope, link};
use types::{DirectoryUpdate, NetworkId};

use crate::hops::Hops;
use crate::node::Node;
use crate::space::{Filter, Space};

/// Where the routes of one namespace are laid.
struct Lane {
    space: Space,
    hops: Hops,
    /// How many routes will come, about.
    count: usize,
    laid: io::Result<()>,
}

type Routes = Vec<(RouteKey, RouteTo)>;

impl Node {
    /// Plans the rest of an update. Networks with very many endpoints are made meanwhile, and what
    /// is answered is what is left to do. Others are to be changed as `whole` says.
    pub(crate) fn finish(
        &mut self,
        update: &DirectoryUpdate,
        mut begun: Begun<'_>,
        whole: &mut BTreeSet<Scope>,
    ) -> BTreeMap<Scope, Changes> {
        let (mut lanes, mut filters) = (BTreeMap::new(), BTreeMap::new());
        for (scope, count) in self.large(update) {
            match self.open_lane(scope, count) {
                Ok(Some((lane, filter))) => {
                    begun.note_done(scope);
                    lanes.insert(scope, lane);
                    filters.insert(scope, filter);
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(?scope, %error, "a network is made later"),
            }
        }
        if lanes.is_empty() {
            return self.planner.finish(begun, |_, _| {});
        }
        let parts = update.endpoints.len() * FAMILIES / ROUTES_AT_ONCE + lanes.len();
        let (sender, receiver) = sync_channel(parts);
        let (mut changes, edited, lanes) = std::thread::scope(|threads| {
            let laying = threads.spawn(move || lay(lanes, &receiver));
            // Who does not take it has panicked, which is seen below.
            let hand_over = |scope: Scope, routes: &mut Routes| {
                if filters.contains_key(&scope) {
                    let _ = sender.send((scope, take(routes)));
                }
            };
            let mut changes = self.planner.finish(begun, hand_over);
            for (scope, changes) in &mut changes {
                hand_over(*scope, &mut changes.routes);
            }
            drop(sender);
            let edit = |(scope, filter): (&Scope, &mut Filter)| {
                let edits = changes.get_mut(scope).map(|changes| take(&mut changes.edits));
                filter.edit(&edits.unwrap_or_default())
            };
            let edited: Vec<io::Result<()>> = filters.iter_mut().map(edit).collect();
            let lanes = laying.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (changes, edited, lanes)
        });
        let edited = filters.into_values().zip(edited);
        for ((scope, lane), (filter, edited)) in lanes.into_iter().zip(edited) {
            let mut space = lane.space;
            match space.join(filter).and(lane.laid).and(edited) {
                Ok(()) => {
                    whole.remove(&scope);
                }
                Err(error) => {
                    tracing::debug!(?scope, %error, "not loaded in full; comparing everything");
                    whole.insert(scope);
                }
            }
            self.spaces.insert(scope, space);
        }
        changes.retain(|_, changes| !changes.is_empty());
        changes
    }

    /// The networks of which nothing is there yet and that get very many endpoints; how many.
    fn large(&mut self, update: &DirectoryUpdate) -> Vec<(Scope, usize)> {
        if update.endpoints.len() < ROUTES_AT_ONCE {
            return Vec::new();
        }
        let mut counts: BTreeMap<NetworkId, usize> = BTreeMap::new();
        for part in &update.endpoints {
            *counts.entry(part.network).or_default() += 1;
        }
        counts.retain(|_, count| *count >= ROUTES_AT_ONCE);
        let scopes = counts.into_iter().map(|(id, count)| (self.scope_of(id), count));
        let mut scopes: Vec<(Scope, usize)> = scopes.collect();
        scopes.retain(|(scope, _)| self.has_no_device(*scope));
        scopes
    }

    /// Nothing can lead to other nodes in it. One that is left of an earlier daemon is not known
    /// yet, and compared.
    fn has_no_device(&mut self, scope: Scope) -> bool {
        let there = self.sandbox_is_there(scope);
        let space = self.spaces.get_mut(&scope);
        let without = space.is_some_and(|space| matches!(space.index(link::VXLAN), Ok(None)));
        self.planner.wanted(scope).is_some() && (!there || without)
    }

    /// Makes a namespace with what is planned for it so far; `None`: it has no device yet.
    fn open_lane(&mut self, scope: Scope, count: usize) -> io::Result<Option<(Lane, Filter)>> {
        self.repair_scope(scope)?;
        let Some(mut space) = self.spaces.remove(&scope) else { return Ok(None) };
        let filter = match space.index(link::VXLAN) {
            Ok(Some(_)) => space.part(),
            index => index.map(|_| None),
        };
        match filter {
            Ok(Some(filter)) => {
                let lane = Lane { space, hops: Hops::default(), count, laid: Ok(()) };
                Ok(Some((lane, filter)))
            }
            other => {
                self.spaces.insert(scope, space);
                other.map(|_| None)
            }
        }
    }
}

/// Lays routes until no more come. After a failure the rest of a namespace is left out.
fn lay(
    mut lanes: BTreeMap<Scope, Lane>,
    routes: &Receiver<(Scope, Routes)>,
) -> BTreeMap<Scope, Lane> {
    for (scope, routes) in routes {
        let Some(lane) = lanes.get_mut(&scope).filter(|lane| lane.laid.is_ok()) else { continue };
        lane.laid = lane.space.lay(routes, &mut lane.hops, lane.count);
    }
    lanes
}

/// An endpoint has a route for each.
const FAMILIES: usize = 2;

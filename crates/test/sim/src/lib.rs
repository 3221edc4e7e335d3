//! Many nodes, one process, a virtual clock: the daemon's own loops under faults.
//!
//! Owns: fakes of the ports (time, links, store, containers), the faults, the invariants.
//! Does not know: any loop of its own; reconciling, dispatching, sessions and tasks are the
//! daemon's very code. Raft is a model here.
//! Invariant: a seed decides everything, so that a run is replayed bit for bit.

mod clock;
mod group;
mod invariants;
mod link;
mod runtime;
mod world;

pub use world::{Outcome, Plan, run};

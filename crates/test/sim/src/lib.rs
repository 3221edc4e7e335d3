//! Many nodes, one process, a virtual clock: the daemon's own loops under faults.
//!
//! Owns: models of what lies between nodes (links, store), the faults, the invariants; time and
//! containers are the testkit's fakes.
//! Does not know: any loop of its own; reconciling, dispatching, sessions and tasks are the
//! daemon's very code. Raft is a model here.
//! Invariant: a seed decides everything, so that a run is replayed bit for bit.

mod group;
mod invariants;
mod link;
mod world;

pub use world::{Outcome, Plan, run};

//! What a node should be told, and whether it is alive.
//!
//! Owns: the difference between what a node was told and what it should know, the deadlines of
//! heartbeats, whose clock differs, which paths between nodes are bad, how far nodes are with their
//! keys, what nodes know of their networks, which stops are held back for it, and what becomes of
//! the tasks of nodes that are gone.
//! Does not know: streams, sessions, who is connected how.
//! Invariant: a node is told of every task that names it, until the task is deleted.

mod assign;
mod clocks;
mod departures;
mod directory;
mod hindrances;
mod liveness;
mod lost;
mod orphans;
mod paths;
mod rotation;

pub use assign::{Difference, Told};
pub use clocks::{Clocks, Reading, Verdict};
pub use departures::{Departures, Overdue};
pub use directory::{Directory, Heard};
pub use hindrances::Hindrances;
pub use liveness::Liveness;
pub use lost::lost_tasks;
pub use orphans::Orphans;
pub use paths::{
    Answer, PathVerdict, data_path_address, is_down, judge_paths, members, path_condition, paths_on,
};
pub use rotation::{KeyLag, KeyProgress, key_progress};

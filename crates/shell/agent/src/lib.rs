//! What a worker does: a session with the managers, and one loop per task.
//!
//! Owns: the node's own record of its tasks, the session, the task loops, reports, log uploads.
//! Does not know: the cluster's state, Raft, or how a container is made.
//! Invariant: what the managers said is on disk before it is acted on, so that a daemon that was
//! killed goes on where it stopped, also while no manager answers.

mod container;
mod db;
mod dial;
mod logs;
mod run;
mod session;
mod task;

pub use db::networks::NetworkDb;
pub use db::{DbError, TaskDb};
pub use dial::GrpcDialer;
pub use logs::LogUplink;
pub use run::{Agent, AgentHandle, NodeOrders, Options, PathLinks};

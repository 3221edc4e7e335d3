//! The complete list of ways the outside gets in.
//!
//! Owns: the traits that the daemon's loops are written over, and their plain data.
//! Does not know: any implementation; nothing here opens a file or a socket.
//! Invariant: a loop that uses only these traits runs unchanged in simulation.

pub mod changes;
pub mod clock;
pub mod link;
pub mod network;
pub mod runtime;
pub mod store;

pub use changes::{Batch, ChangeLog, Cursor};
pub use clock::Clock;
pub use link::{Link, LinkError, SessionDialer};
pub use network::{Attached, ContainerNetwork, Drain, HostPort, Network};
pub use store::{Applied, Leadership, ProposeError, Store};

//! Fakes of the ports that need nothing but the ports.
//!
//! Owns: a virtual clock, and a host with containers and networks. The store, and links between an
//! agent and a manager, are models of the simulation: they need the wire and the loops.
//! Does not know: what is tested with them.
//! Invariant: each passes the conformance suite of its port.

mod clock;
mod host;

pub use clock::{Gate, SimClock};
pub use host::Host;

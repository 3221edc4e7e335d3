//! The complete list of ways the outside gets in.
//!
//! Owns: the traits that the daemon's loops are written over, and their plain data.
//! Does not know: any implementation; nothing here opens a file or a socket.
//! Invariant: a loop that uses only these traits runs unchanged in simulation.

pub mod runtime;

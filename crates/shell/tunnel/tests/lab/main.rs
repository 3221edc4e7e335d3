//! Engines in network namespaces: with each other, with other implementations, with attackers.
//!
//! Owns: the list of tests by subject. Does not know: the engine's inside; only what is public.
//! Invariant: every namespace goes with its last descriptor, so nothing is left on the host.

#![allow(clippy::unwrap_used)]

mod engine;
mod hostile;
mod interop;
mod kernel;
mod restart;
mod spaces;

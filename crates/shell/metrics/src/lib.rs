//! What a node tells Prometheus: a few facts, as text, over plain HTTP.
//!
//! Owns: names, help and units of the metrics, the two text formats, the port and its bounds.
//! Does not know: where the facts come from.
//! Invariant: a scrape tells of what is there at that moment and nothing else: of a peer that is
//! gone there are no series.

mod facts;
mod server;
mod text;

pub use facts::{
    BuildFacts, EncryptionFacts, Facts, ManagerFacts, MemberFacts, PeerFacts, TunnelFacts,
};
pub use server::{Server, Unavailable};
pub use text::{Format, text};

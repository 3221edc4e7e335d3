//! What a manager does: leader duties, the control API, the dispatcher, certificates.
//!
//! Owns: the loops that drive the deciders, the services that managers offer, and forwarding.
//! Does not know: Raft, containers, netlink; it sees the store through its port.
//! Invariant: nothing is decided here that a core crate decides, and no duty of a leader runs on a
//! manager that does not lead.

pub mod api;
mod authorize;
pub mod certificates;
mod connections;
pub mod dispatcher;
mod forward;
pub mod membership;
pub mod options;
pub mod reconcile;
mod server;
pub mod standing;

pub use api::{CallerUid, CheckStream, ControlApi, LogBroker};
pub use certificates::CertificateApi;
pub(crate) use dispatcher::dispatcher_addresses;
pub use dispatcher::{Dispatcher, DispatcherHandle};
pub use forward::{Leader, fault_of_proposal, not_leader};
pub use options::Timing;
pub use server::{Managers, router};

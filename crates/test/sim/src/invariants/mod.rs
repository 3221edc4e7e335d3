//! What must hold, each in a file of its own.
//!
//! Owns: the list. Invariant: a violation is a sentence that names what it was seen on.

mod backwards;
mod converged;
mod lost_service;
mod slots;

pub(crate) use backwards::Backwards;
pub(crate) use converged::check_converged;
pub(crate) use lost_service::check_services;
pub(crate) use slots::{check_running, check_slots};

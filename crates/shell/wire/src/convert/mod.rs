//! Between the messages and the core types.
//!
//! Owns: every conversion, in both directions.
//! Does not know: whether a value makes sense; the types check themselves.
//! Invariant: an enum value that this version does not know is refused, never replaced by a
//! default.

mod cluster;
mod directory;
mod encryption;
mod fault;
mod local_network;
mod network;
mod node;
mod paths;
mod service;
mod spec;
mod task;

pub(crate) use node::role;
pub(crate) use task::state;

pub use fault::{ERROR_KEY, fault_of, status_of};
pub use paths::bad_paths;

use base::Id;
use types::{ErrorCode, Fault, Meta};

use crate::v1;

/// A message that cannot be what it should be: the sender is newer or broken.
fn malformed(field: &str, message: impl Into<String>) -> Fault {
    Fault { field: field.into(), ..Fault::new(ErrorCode::Invalid, message) }
}

/// The sixteen bytes of an identity.
///
/// # Errors
/// Names `field` when they are none.
pub fn id<T: From<Id>>(bytes: &[u8], field: &str) -> Result<T, Fault> {
    Id::from_bytes(bytes).map(T::from).ok_or_else(|| malformed(field, "is not an identity"))
}

/// An identity that may be absent: no bytes.
///
/// # Errors
/// Names `field` when there are bytes that are no identity.
pub fn optional_id<T: From<Id>>(bytes: &[u8], field: &str) -> Result<Option<T>, Fault> {
    if bytes.is_empty() { Ok(None) } else { id(bytes, field).map(Some) }
}

/// A message that must be there.
fn required<T>(message: Option<T>, field: &str) -> Result<T, Fault> {
    message.ok_or_else(|| malformed(field, "is missing"))
}

fn all<A, B: TryFrom<A, Error = Fault>>(list: Vec<A>) -> Result<Vec<B>, Fault> {
    list.into_iter().map(B::try_from).collect()
}

/// The bytes of an address; none for none.
fn octets<const N: usize>(bytes: &[u8], field: &str) -> Result<Option<[u8; N]>, Fault> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let octets = bytes.try_into();
    octets.map(Some).map_err(|_| malformed(field, format!("an address has {N} bytes")))
}

fn unknown(field: &str, number: i32) -> Fault {
    malformed(field, format!("value {number} is not known to this version"))
}

impl From<Meta> for v1::Meta {
    fn from(meta: Meta) -> Self {
        Self {
            created_at: meta.created.0,
            updated_at: meta.updated.0,
            version: meta.version,
            spec_version: meta.spec_version,
        }
    }
}

impl From<v1::Meta> for Meta {
    fn from(meta: v1::Meta) -> Self {
        Self {
            created: base::Timestamp(meta.created_at),
            updated: base::Timestamp(meta.updated_at),
            version: meta.version,
            spec_version: meta.spec_version,
        }
    }
}

//! Protobuf at the border: generated code and conversions.
//!
//! Owns: the generated messages of `proto/`, and their conversions from and to the core types.
//! Does not know: how anything is decided, or how bytes are carried.
//! Invariant: what cannot be converted is refused with the path of the field.

/// What `cargo xtask codegen` makes of `proto/`, in the modules that its paths expect.
#[allow(clippy::all, clippy::pedantic, unreachable_pub, missing_docs, rust_2018_idioms)]
mod generated {
    pub mod v1 {
        include!("generated/shoal.v1.rs");
    }
    pub mod agent {
        pub mod v1 {
            include!("generated/shoal.agent.v1.rs");
        }
    }
    pub mod raft {
        pub mod v1 {
            include!("generated/shoal.raft.v1.rs");
        }
    }
    pub mod store {
        pub mod v1 {
            include!("generated/shoal.store.v1.rs");
        }
    }
}

mod convert;
pub mod fuzzing;
mod log;

pub use convert::{ERROR_KEY, bad_paths, fault_of, id, optional_id, status_of};
pub use generated::agent::v1 as agent_v1;
pub use generated::raft::v1 as raft_v1;
pub use generated::store::v1 as store_v1;
pub use generated::v1;
pub use log::{
    FORMAT, RECORD_BYTES_MAX, StoredError, decode_proposal, decode_snapshot, encode_proposal,
    encode_snapshot,
};

/// Without the credentials, which no log may hold.
impl std::fmt::Debug for v1::PullImageRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullImageRequest")
            .field("reference", &self.reference)
            .finish_non_exhaustive()
    }
}

/// Version of the protocol between nodes that this build speaks; older ones down to it.
pub const PROTOCOL: u32 = 1;
/// Bytes of one message between nodes at most; larger sets are sent in several.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The bytes of an identity, as messages carry it.
#[must_use]
pub fn bytes_of(id: base::Id) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&id.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_printed() {
        let request = v1::PullImageRequest {
            reference: "app:1".into(),
            username: "hush".into(),
            password: "hush".into(),
            identity_token: "hush".into(),
            registry_token: "hush".into(),
        };
        let shown = format!("{request:?}");
        assert!(shown.contains("app:1") && !shown.contains("hush"), "{shown}");
    }
}

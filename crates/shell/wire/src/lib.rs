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
    pub mod store {
        pub mod v1 {
            include!("generated/shoal.store.v1.rs");
        }
    }
}

mod convert;

pub use convert::{ERROR_KEY, fault_of, id, optional_id, status_of};
pub use generated::store::v1 as store_v1;
pub use generated::v1;

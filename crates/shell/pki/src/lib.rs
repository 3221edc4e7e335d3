//! The `pki` crate; see ARCHITECTURE.md for what it owns.

//! The `types` crate; see ARCHITECTURE.md for what it owns.

//! The `cli` crate; see ARCHITECTURE.md for what it owns.

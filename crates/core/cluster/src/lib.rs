//! The `cluster` crate; see ARCHITECTURE.md for what it owns.

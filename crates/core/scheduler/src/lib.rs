//! The `scheduler` crate; see ARCHITECTURE.md for what it owns.

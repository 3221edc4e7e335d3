//! The `view` crate; see ARCHITECTURE.md for what it owns.

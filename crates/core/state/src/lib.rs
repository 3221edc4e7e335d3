//! The `state` crate; see ARCHITECTURE.md for what it owns.

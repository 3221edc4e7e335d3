//! The `wire` crate; see ARCHITECTURE.md for what it owns.

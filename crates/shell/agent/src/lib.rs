//! The `agent` crate; see ARCHITECTURE.md for what it owns.

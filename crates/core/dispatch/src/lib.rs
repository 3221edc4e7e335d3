//! The `dispatch` crate; see ARCHITECTURE.md for what it owns.

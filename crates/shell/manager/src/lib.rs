//! The `manager` crate; see ARCHITECTURE.md for what it owns.

//! The `runtime` crate; see ARCHITECTURE.md for what it owns.

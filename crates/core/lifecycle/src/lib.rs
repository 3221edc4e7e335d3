//! The `lifecycle` crate; see ARCHITECTURE.md for what it owns.

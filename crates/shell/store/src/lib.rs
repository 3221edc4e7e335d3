//! The `store` crate; see ARCHITECTURE.md for what it owns.

//! The `network` crate; see ARCHITECTURE.md for what it owns.

//! The `shim` crate; see ARCHITECTURE.md for what it owns.

//! The `orchestrator` crate; see ARCHITECTURE.md for what it owns.

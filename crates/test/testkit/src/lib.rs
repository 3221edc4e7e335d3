//! The `testkit` crate; see ARCHITECTURE.md for what it owns.

//! The `allocator` crate; see ARCHITECTURE.md for what it owns.

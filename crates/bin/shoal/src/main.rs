//! bin/shoal
fn main() {}

//! bin/whoami
fn main() {}

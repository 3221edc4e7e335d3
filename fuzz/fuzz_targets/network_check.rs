//! See the target of this name in crates/test/inputs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (inputs::target("network_check").run)(bytes));

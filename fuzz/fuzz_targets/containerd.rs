//! See `containerd` in ../harness.rs.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::containerd(bytes));

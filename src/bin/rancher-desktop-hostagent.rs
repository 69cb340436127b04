//! The host end.
fn main() {}

//! Skybridge.
fn main() {}

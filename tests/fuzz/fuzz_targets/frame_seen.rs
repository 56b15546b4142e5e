#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| testkit::invariant::frame_seen(input));

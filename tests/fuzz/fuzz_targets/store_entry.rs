#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| testkit::invariant::store_entry(input));

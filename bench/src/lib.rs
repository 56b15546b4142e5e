#![forbid(unsafe_code)]
//! Benchmarks of the datapath's crates; the benches themselves are in `benches/`.
//!
//! `cargo bench -p bench --bench fdb` compares the copy-on-write fan-out of the tables with a hash
//! array mapped trie (rpds) and with two alternating hash maps (left-right).
//!
//! `cargo bench -p bench --bench encap` measures what the datapath does to the bytes of a frame:
//! checksum, flow hash, segmentation and coalescing.

//! Tests of the whole: real agents in network namespaces, real traffic, the kernel's own vxlan
//! device as a peer.
//!
//! `cargo test --workspace --test system` runs them as root; what the machine lacks is listed as ignored with
//! the reason, and `SKYBRIDGE_TEST_REQUIRE=all` makes that a failure. A name or part of one after
//! `--` selects tests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod attach;
mod bounds;
mod demo;
mod direct;
mod docker;
mod errors;
mod faults;
mod flood;
mod frames;
mod host_faults;
mod hostile;
mod interop;
mod ipam;
mod join;
mod l3;
mod lab;
mod local;
mod manager;
mod moves;
mod offload;
mod outside;
mod ovs;
mod paths;
mod privileges;
mod recovery;
mod reload;
mod scale;
mod scene;
mod session;
mod soak;
mod store_faults;
mod support;
mod swarm;
mod traffic;
mod tunnels;
mod wire;

fn main() {
    testkit::sandbox::run_if_asked();
    testkit::use_binary(env!("CARGO_BIN_EXE_skybridge"));
    let mut suite = testkit::Suite::new();
    lab::register(&mut suite);
    traffic::register(&mut suite);
    tunnels::register(&mut suite);
    interop::register(&mut suite);
    ovs::register(&mut suite);
    frames::register(&mut suite);
    offload::register(&mut suite);
    attach::register(&mut suite);
    wire::register(&mut suite);
    hostile::register(&mut suite);
    local::register(&mut suite);
    l3::register(&mut suite);
    paths::register(&mut suite);
    direct::register(&mut suite);
    moves::register(&mut suite);
    flood::register(&mut suite);
    outside::register(&mut suite);
    recovery::register(&mut suite);
    faults::register(&mut suite);
    store_faults::register(&mut suite);
    session::register(&mut suite);
    join::register(&mut suite);
    demo::register(&mut suite);
    errors::register(&mut suite);
    privileges::register(&mut suite);
    manager::register(&mut suite);
    host_faults::register(&mut suite);
    bounds::register(&mut suite);
    soak::register(&mut suite);
    ipam::register(&mut suite);
    reload::register(&mut suite);
    scale::register(&mut suite);
    docker::register(&mut suite);
    swarm::register(&mut suite);
    suite.run();
}

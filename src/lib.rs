//! Skybridge: a userspace VXLAN / IP-in-IP overlay switch over TUN/TAP.

#![deny(unsafe_code)]

pub mod agent;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod demo;
pub mod driver;
pub mod link;
pub mod port;
#[expect(unsafe_code, reason = "the system calls that no crate offers in a shape we can use")]
pub mod sys;
pub mod telemetry;
pub mod traffic;
pub mod underlay;

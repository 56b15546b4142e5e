//! Skybridge: a userspace VXLAN overlay switch over TAP.
//!
//! `docs/architecture.md` has the words and the pictures; here is where things are:
//!
//! - the way of a frame: [`port`], [`datapath`], [`underlay`], and [`sys`] below them
//! - the way of a record: the crate `membership`, then [`agent`]
//! - the store: [`store`] serves the embedded one, joins it, and moves records
//! - the host: [`link`], [`driver`]
//! - people: [`cli`], [`control`], [`config`], [`telemetry`], [`demo`], [`traffic`]
//! - the process: [`daemon`]

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
pub mod store;
#[expect(unsafe_code, reason = "the system calls that no crate offers in a shape we can use")]
pub mod sys;
pub mod telemetry;
pub mod traffic;
pub mod underlay;

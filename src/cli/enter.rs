//! `skybridge enter`: a command in a network's private namespace.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sched::{CloneFlags, setns};

use super::Failure;
use crate::control::types::Namespace;

/// Moves this process, which has one thread, into the namespace and becomes the command there.
/// Returns only when that fails.
pub(super) fn enter(namespace: &Namespace, command: &[OsString]) -> Failure {
    let path = namespace.path.display();
    let file = match File::open(&namespace.path) {
        Ok(file) => file,
        Err(err) => return denied_or(err, format!("cannot open {path}")),
    };
    if let Err(errno) = setns(file, CloneFlags::CLONE_NEWNET) {
        return denied_or(errno.into(), format!("cannot enter {path}"));
    }
    let shell = || std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
    let shell = || shell().unwrap_or_else(|| OsString::from("/bin/sh"));
    let (program, args) = match command.split_first() {
        Some((program, args)) => (program.clone(), args),
        None => (shell(), [].as_slice()),
    };
    let err = Command::new(&program)
        .args(args)
        .env("SKYBRIDGE_NETWORK", &namespace.network)
        .env("SKYBRIDGE_BRIDGE", namespace.bridge.as_deref().unwrap_or_default())
        .env("SKYBRIDGE_PORT", &namespace.port)
        .exec();
    Failure::new(format!("cannot run {}", program.to_string_lossy()))
        .cause(err.to_string())
        .next_step("give a command that is installed, such as `ip -d link`")
}

fn denied_or(err: io::Error, what: String) -> Failure {
    let failure = Failure::new(what).cause(err.to_string());
    match err.kind() {
        io::ErrorKind::PermissionDenied => failure.next_step("run it as root"),
        _ => failure.next_step("`skybridge network inspect` shows whether the network is here"),
    }
}

//! Real etcd servers to test against: the newest patch of each minor version that is in use.
//!
//! All come from crates.io, as static binaries in the crate `etcd-bin-vendored-linux-amd64`. The
//! newest is an ordinary dependency. One dependency graph holds only one 3.x of a crate, so each of
//! the others has a manifest and a lock file of its own beside this crate; `cargo fetch` unpacks
//! what it names next to the newest one, where [`Version::server`] finds it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

const CRATE: &str = "etcd-bin-vendored-linux-amd64";

/// A minor version of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 3.4, as Debian 12 has it.
    V3_4,
    /// 3.5.
    V3_5,
    /// 3.6.
    V3_6,
    /// 3.7.
    V3_7,
}

impl Version {
    /// All of them, the oldest first.
    pub const ALL: [Self; 4] = [Self::V3_4, Self::V3_5, Self::V3_6, Self::V3_7];
    /// The one that the others are compared with.
    pub const NEWEST: Self = Self::V3_7;

    /// Its name, such as `3.4`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V3_4 => "3.4",
            Self::V3_5 => "3.5",
            Self::V3_6 => "3.6",
            Self::V3_7 => "3.7",
        }
    }

    /// The program. What has not been fetched yet is fetched from crates.io, once.
    ///
    /// # Errors
    ///
    /// A sentence that says what is missing and how to get it.
    pub fn server(self) -> Result<PathBuf, String> {
        let Ok(newest) = etcd_bin_vendored_linux_amd64::etcd_bin_path();
        let lock = match self {
            Self::V3_4 => include_str!("../3.4/Cargo.lock"),
            Self::V3_5 => include_str!("../3.5/Cargo.lock"),
            Self::V3_6 => include_str!("../3.6/Cargo.lock"),
            Self::V3_7 => return Ok(newest.to_owned()),
        };
        let version = locked(lock).ok_or_else(|| {
            format!("tests/etcd/{}/Cargo.lock does not name {CRATE}", self.name())
        })?;
        // registry/src/INDEX/CRATE-VERSION/bin/etcd
        let home = newest.ancestors().nth(3);
        let home = home.ok_or_else(|| format!("{} is in no registry", newest.display()))?;
        let home = home.join(format!("{CRATE}-{version}"));
        fetched(&home, self)?;
        Ok(home.join("bin/etcd"))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Makes sure that the crate is unpacked at `home`.
fn fetched(home: &Path, version: Version) -> Result<(), String> {
    static ONE: Mutex<()> = Mutex::new(());
    // Cargo writes this file last.
    let whole = || home.join(".cargo-ok").exists();
    let _turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if whole() {
        return Ok(());
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join(version.name()).join("Cargo.toml");
    let mut fetch = Command::new(env!("CARGO"));
    fetch.args(["fetch", "--quiet", "--locked", "--manifest-path"]).arg(&manifest);
    // That of whoever built this, also where a test runs as somebody else.
    if let Some(cargo) = home.ancestors().nth(4) {
        fetch.env("CARGO_HOME", cargo);
    }
    let advice = format!("`cargo fetch --locked --manifest-path {}` gets it", manifest.display());
    let output = fetch.output().map_err(|err| format!("cargo does not run ({err}); {advice}"))?;
    if whole() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("etcd {version} is not at {}: {}; {advice}", home.display(), said.trim()))
}

/// The version of the server's crate in a lock file.
fn locked(lock: &str) -> Option<&str> {
    let mut lines = lock.lines().skip_while(|line| *line != format!("name = \"{CRATE}\""));
    lines.nth(1)?.strip_prefix("version = \"")?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_runs_and_is_what_it_says() {
        for version in Version::ALL {
            let server = version.server().unwrap_or_else(|err| panic!("{err}"));
            let output = Command::new(&server).arg("--version").output();
            let output = output.unwrap_or_else(|err| panic!("{}: {err}", server.display()));
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains(&format!("etcd Version: {version}.")), "{text}");
        }
    }
}

//! Kernel settings below /proc/sys, of the namespace that the calling thread is in.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::Error;

/// Sets `name` (path below /proc/sys) to `value` unless it has it. A setting that this kernel does
/// not have is passed over: what it would switch off is not there either. Returns whether it was
/// written.
pub(super) fn ensure(name: &str, value: &'static str) -> Result<bool, Error> {
    let path = PathBuf::from("/proc/sys").join(name);
    let failed = |source| Error::Sysctl { name: name.into(), value, source };
    match fs::read_to_string(&path) {
        Ok(present) if present.trim() == value => return Ok(false),
        Ok(_) => (),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(error)),
    }
    fs::write(&path, value).map_err(failed)?;
    Ok(true)
}

/// What `name` is set to; `None` when this kernel does not have it.
pub(super) fn read(name: &str) -> Option<String> {
    let path = PathBuf::from("/proc/sys").join(name);
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

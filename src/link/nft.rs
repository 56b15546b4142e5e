//! Running `nft`, which writes rules in one transaction per call.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Error, NetNs, run_in};

/// Runs `work` in the namespace without holding up the runtime's workers: nft takes milliseconds.
pub(super) async fn in_namespace<T: Send + 'static>(
    namespace: &NetNs,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let namespace = namespace.clone();
    match tokio::task::spawn_blocking(move || run_in(&namespace, work)).await {
        Ok(result) => result?,
        Err(error) => Err(Error::Thread(error.into())),
    }
}

/// Runs nft in the calling thread's namespace and gives its output.
pub(super) fn nft(doing: &'static str, arguments: &[&str], input: &str) -> Result<String, Error> {
    let failed = |error: std::io::Error| {
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound => "the program is not installed; install nftables".into(),
            _ => error.to_string(),
        };
        Error::Nft { doing, reason }
    };
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // nft reads all of its input before it writes.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        let first = message.lines().next().unwrap_or("it gave no message").to_owned();
        return Err(Error::Nft { doing, reason: first });
    }
    written.map_err(failed)?;
    String::from_utf8(output.stdout)
        .map_err(|_| Error::Nft { doing, reason: "its answer is not text".into() })
}

/// Whether nft can be run at all.
pub(super) fn is_installed() -> bool {
    Command::new("nft").arg("--version").output().is_ok()
}

/// As [`nft`], for an answer in JSON: the objects in it.
pub(super) fn objects(doing: &'static str, arguments: &[&str]) -> Result<Vec<Value>, Error> {
    let text = nft(doing, arguments, "")?;
    let unreadable = |_| Error::Nft { doing, reason: "its answer is not JSON".into() };
    let mut answer: Value = serde_json::from_str(&text).map_err(unreadable)?;
    Ok(match answer.get_mut("nftables").map(Value::take) {
        Some(Value::Array(objects)) => objects,
        _ => Vec::new(),
    })
}

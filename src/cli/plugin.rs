//! `skybridge docker-plugin`: the program inside a managed plugin of Docker.
//!
//! # Theory of operation
//!
//! ```text
//!   dockerd ──► /run/docker/plugins/skybridge.sock ──► this ──► the agent's socket for Docker
//!               in the plugin                                   of the host, mounted into the plugin
//! ```
//!
//! A Swarm takes drivers from managed plugins only. Networks are the agent's matter, so the plugin does
//! nothing but carry bytes to it: it needs no capability, keeps nothing, and can be replaced at any time.
//! While the agent does not answer, a connection waits for it; after that Docker is told why.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

use super::Failure;
use super::args::DockerPluginArgs;

/// How long a connection waits for an agent that is being restarted: less than Docker does.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it looks for the agent meanwhile.
const AGAIN: Duration = Duration::from_millis(200);
/// Connections at a time; Docker waits with more.
const CONNECTIONS: usize = 256;
/// Room for a request that is refused.
const REQUEST_BYTES: usize = 64 * 1024;

/// Carries connections, for ever.
pub(super) async fn serve(args: DockerPluginArgs) -> Result<ExitCode, Failure> {
    let failed = |what: &str, err: &io::Error| {
        Failure::new(format!("cannot {what} {}", args.listen.display())).cause(err.to_string())
    };
    clear(&args.listen).map_err(|err| failed("replace", &err))?;
    if let Some(folder) = args.listen.parent() {
        std::fs::create_dir_all(folder).map_err(|err| failed("make the folder of", &err))?;
    }
    let listener = UnixListener::bind(&args.listen).map_err(|err| failed("listen on", &err))?;
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(turn) = Arc::clone(&free).acquire_owned().await else { continue };
        let docker = match listener.accept().await {
            Ok((docker, _)) => docker,
            // Out of descriptors, most likely: those that are open end by themselves.
            Err(_) => {
                sleep(AGAIN).await;
                continue;
            }
        };
        let agent = args.agent.clone();
        tokio::spawn(async move {
            carry(docker, &agent).await;
            drop(turn);
        });
    }
}

/// Removes the socket of an earlier run.
fn clear(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path),
        _ => Ok(()),
    }
}

/// Both directions of one connection, until either side ends it.
async fn carry(mut docker: UnixStream, path: &Path) {
    match connect(path).await {
        Ok(mut agent) => {
            let _ = tokio::io::copy_bidirectional(&mut docker, &mut agent).await;
        }
        Err(err) => refuse(docker, path, &err).await,
    }
}

async fn connect(path: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match timeout_at(deadline, UnixStream::connect(path)).await {
            Ok(Ok(agent)) => return Ok(agent),
            Ok(Err(err)) if Instant::now() + AGAIN >= deadline => return Err(err),
            Ok(Err(_)) => sleep(AGAIN).await,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Tells Docker what is wrong, in the field that it shows.
async fn refuse(mut docker: UnixStream, path: &Path, err: &io::Error) {
    // What is not read when the connection ends would make the answer be lost.
    let mut request = vec![0; REQUEST_BYTES];
    let _ = docker.read(&mut request).await;
    let text = format!(
        "no agent answers on {}: {err}; is it running with --docker, and is its socket mounted into \
         the plugin (docker plugin set NAME agent.source=DIRECTORY)?",
        path.display()
    );
    let body = serde_json::json!({ "Err": text, "Error": text }).to_string();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = docker.write_all(answer.as_bytes()).await;
    let _ = docker.shutdown().await;
}

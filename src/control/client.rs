//! The client of the control socket.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::types::{
    self, Attach, Attachment, CollectGarbage, CreateNetwork, Detach, Detached, Drops, Endpoint,
    ExportedEntry, FdbEntry, Garbage, Host, KernelLink, LinkKernel, MakeToken, Namespace,
    NeighborEntry, Network, NetworkDetail, RouteEntry, StaticVtep, Stats, Status, StoreAccess,
    Token, UpdateNetwork, VtepAdd,
};

/// How long an answer is waited for: longer than the agent itself waits for the store.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Why an operation gave no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent refused or failed.
    #[error(transparent)]
    Agent(#[from] types::Error),
    /// The answer is not one of this API.
    #[error("the answer on {socket} is not understood: {detail}")]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The connection broke.
    #[error("the connection to the agent on {socket} broke: {detail}")]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// How.
        detail: String,
    },
    /// The user may not connect.
    #[error("no permission to use {socket}")]
    Denied {
        /// The socket.
        socket: PathBuf,
        /// Its group, where that can be seen and is not root's.
        group: Option<String>,
    },
    /// Nobody listens.
    #[error("no agent answers on {socket}: {source}")]
    NoAgent {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No answer in time.
    #[error("the agent on {socket} gave no answer within {} s", limit.as_secs())]
    Timeout {
        /// The socket.
        socket: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
}

impl Error {
    /// What to do next.
    #[must_use]
    pub fn next_step(&self) -> Option<String> {
        match self {
            Self::Agent(error) => error.next_step.clone(),
            Self::Answer { .. } => Some(
                "compare the versions of agent and command, and what listens on the socket"
                    .to_owned(),
            ),
            Self::Broken { .. } => Some(
                "the agent's log says more; `skybridge status` shows whether it is back".into(),
            ),
            Self::Denied { group: Some(group), .. } => Some(format!(
                "run the command as root or as a member of the group {group}; a new membership \
                 counts from the next login"
            )),
            Self::Denied { group: None, .. } => Some(
                "run the command as root, or start the agent with --socket-group so that a group \
                 may use its socket"
                    .to_owned(),
            ),
            Self::NoAgent { .. } => Some(
                "is the agent running? start it with `skybridge agent`, or name its socket with \
                 --socket"
                    .to_owned(),
            ),
            Self::Timeout { .. } => Some(
                "the operation may still complete; `skybridge status` and the agent's log tell"
                    .to_owned(),
            ),
        }
    }
}

/// The name of a socket's group, or its number; `None` where it cannot be looked at, or is root's.
fn group_of(socket: &Path) -> Option<String> {
    let gid = std::fs::symlink_metadata(socket).ok()?.gid();
    let found = nix::unistd::Group::from_gid(nix::unistd::Gid::from_raw(gid));
    let name = found.ok().flatten().map_or_else(|| gid.to_string(), |group| group.name);
    (gid != 0).then_some(name)
}

/// A client of one agent. Each operation has a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

impl Client {
    /// A client of the agent that listens on `socket`; nothing is connected yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), timeout: TIMEOUT }
    }

    /// Waits at most this long for an answer, instead of [`TIMEOUT`].
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The agent's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, Error> {
        let answer = tokio::time::timeout(self.timeout, self.exchange(method, path, body)).await;
        let (status, bytes) = answer
            .map_err(|_| Error::Timeout { socket: self.socket.clone(), limit: self.timeout })??;
        let not_understood = |detail| Error::Answer { socket: self.socket.clone(), detail };
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|err| not_understood(err.to_string()));
        }
        match serde_json::from_slice::<types::Error>(&bytes) {
            Ok(error) => Err(Error::Agent(error)),
            Err(_) => Err(not_understood(format!("HTTP status {status}"))),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), Error> {
        let socket = || self.socket.clone();
        let broken =
            |err: hyper::Error| Error::Broken { socket: socket(), detail: err.to_string() };
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    Error::Denied { socket: socket(), group: group_of(&self.socket) }
                }
                _ => Error::NoAgent { socket: socket(), source },
            })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends by itself once the answer is read and the sender is gone.
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|err| Error::Broken { socket: socket(), detail: err.to_string() })?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.map_err(broken)?.to_bytes();
        driver.abort();
        Ok((status, bytes))
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.call(Method::GET, path, Vec::new()).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        request: &impl Serialize,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(request).map_err(|err| {
            types::Error::bad_request("the request cannot be written").cause(err.to_string())
        })?;
        self.call(method, path, body).await
    }

    async fn remove(&self, path: &str) -> Result<(), Error> {
        self.call(Method::DELETE, path, Vec::new()).await
    }

    /// How the agent is.
    ///
    /// # Errors
    /// See [`Error`], as for every operation.
    pub async fn status(&self) -> Result<Status, Error> {
        self.read("/v1/status").await
    }

    /// All hosts.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn hosts(&self) -> Result<Vec<Host>, Error> {
        self.read("/v1/hosts").await
    }

    /// All networks.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn networks(&self) -> Result<Vec<Network>, Error> {
        self.read("/v1/networks").await
    }

    /// One network, by name or id.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn network(&self, network: &str) -> Result<NetworkDetail, Error> {
        self.read(&path(network, "")).await
    }

    /// Makes a network.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_network(&self, request: &CreateNetwork) -> Result<NetworkDetail, Error> {
        self.send(Method::POST, "/v1/networks", request).await
    }

    /// Changes a network.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn update_network(
        &self,
        network: &str,
        request: &UpdateNetwork,
    ) -> Result<NetworkDetail, Error> {
        self.send(Method::PATCH, &path(network, ""), request).await
    }

    /// Removes a network.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_network(&self, network: &str) -> Result<(), Error> {
        self.remove(&path(network, "")).await
    }

    /// The static VTEPs of a network.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn vteps(&self, network: &str) -> Result<Vec<StaticVtep>, Error> {
        self.read(&path(network, "/vteps")).await
    }

    /// Adds a static VTEP to a network.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add_vtep(&self, network: &str, request: &VtepAdd) -> Result<StaticVtep, Error> {
        self.send(Method::POST, &path(network, "/vteps"), request).await
    }

    /// Removes a static VTEP from a network.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_vtep(&self, network: &str, address: IpAddr) -> Result<(), Error> {
        self.remove(&path(network, &format!("/vteps/{address}"))).await
    }

    /// The endpoints of a network as a vxlan device of the kernel is told of them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn exported(&self, network: &str) -> Result<Vec<ExportedEntry>, Error> {
        self.read(&path(network, "/vteps/exported")).await
    }

    /// The vxlan devices of the agent's host that a network exchanges entries with.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn kernel_links(&self, network: &str) -> Result<Vec<KernelLink>, Error> {
        self.read(&path(network, "/vteps/kernel")).await
    }

    /// Begins or ends to exchange entries with a vxlan device of the agent's host.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn link_kernel(
        &self,
        network: &str,
        request: &LinkKernel,
    ) -> Result<Vec<KernelLink>, Error> {
        self.send(Method::POST, &path(network, "/vteps/kernel"), request).await
    }

    /// Where a network's private namespace is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn namespace(&self, network: &str) -> Result<Namespace, Error> {
        self.read(&path(network, "/namespace")).await
    }

    /// Attaches a sandbox.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn attach(&self, request: &Attach) -> Result<Attachment, Error> {
        self.send(Method::POST, "/v1/attach", request).await
    }

    /// Detaches a sandbox or an endpoint.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn detach(&self, request: &Detach) -> Result<Vec<Detached>, Error> {
        self.send(Method::POST, "/v1/detach", request).await
    }

    /// Endpoints of one network or of all.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn endpoints(&self, network: Option<&str>) -> Result<Vec<Endpoint>, Error> {
        self.read(&filtered("/v1/endpoints", network)).await
    }

    /// FDB entries of one network or of all.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn fdb(&self, network: Option<&str>) -> Result<Vec<FdbEntry>, Error> {
        self.read(&filtered("/v1/fdb", network)).await
    }

    /// Neighbor entries of one network or of all.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn neighbors(&self, network: Option<&str>) -> Result<Vec<NeighborEntry>, Error> {
        self.read(&filtered("/v1/neighbors", network)).await
    }

    /// Routes of one network or of all.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn routes(&self, network: Option<&str>) -> Result<Vec<RouteEntry>, Error> {
        self.read(&filtered("/v1/routes", network)).await
    }

    /// Drops by reason and network.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn drops(&self) -> Result<Vec<Drops>, Error> {
        self.read("/v1/drops").await
    }

    /// How the agent reaches its store.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn store(&self) -> Result<StoreAccess, Error> {
        self.read("/v1/store").await
    }

    /// Makes a token by which a host joins the store that the agent serves.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn make_token(&self, request: &MakeToken) -> Result<Token, Error> {
        self.send(Method::POST, "/v1/store/tokens", request).await
    }

    /// What no living owner has.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn collect_garbage(&self, request: &CollectGarbage) -> Result<Vec<Garbage>, Error> {
        self.send(Method::POST, "/v1/gc", request).await
    }

    /// All counters.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stats(&self) -> Result<Stats, Error> {
        self.read("/v1/stats").await
    }
}

fn path(network: &str, rest: &str) -> String {
    format!("/v1/networks/{}{rest}", escape(network))
}

fn filtered(path: &str, network: Option<&str>) -> String {
    match network {
        Some(network) => format!("{path}?network={}", escape(network)),
        None => path.to_owned(),
    }
}

/// Percent-encodes what is not an unreserved character (RFC 3986 section 2.3), so that no name can
/// reach another path.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_the_path() {
        assert_eq!(path("a/../b", ""), "/v1/networks/a%2F..%2Fb");
        assert_eq!(filtered("/v1/fdb", Some("a&b=1")), "/v1/fdb?network=a%26b%3D1");
        assert_eq!(filtered("/v1/fdb", None), "/v1/fdb");
    }
}

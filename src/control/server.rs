//! The server of the control socket.
//!
//! # Theory of operation
//!
//! [`bind`] makes the socket: it takes a lock on the socket's directory, so that two agents cannot
//! both think that a left-over is stale; a socket on which somebody answers is refused, one on which
//! nobody does is replaced, anything that is no socket is left alone. The mode is set before the
//! name appears. [`serve`] turns requests into calls of [`Api`], each in a task of its own: a panic
//! there is one failed operation, and a client that goes away leaves nothing half done.
//!
//! Limits: a request body has at most [`BODY_MAX`] bytes. Every answer that is not 2xx is an
//! [`Error`] in JSON.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequest, FromRequestParts, Query, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::Group;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;

use super::api::{Answer, Api};
use super::check::{self, Check};
use super::types::{
    Attach, CollectGarbage, CreateNetwork, Detach, Error, ErrorCode, LinkKernel, MakeToken,
    UpdateNetwork, VtepAdd,
};

/// Largest request body in bytes.
pub const BODY_MAX: usize = 256 * 1024;
/// Mode of the socket: the owner and the group may connect.
pub const SOCKET_MODE: u32 = 0o660;
/// Longest path of a socket in bytes (`sun_path` of include/uapi/linux/un.h less the final zero).
pub const PATH_MAX: usize = 107;
/// How long running operations get when the server is stopped.
pub const STOP_GRACE: Duration = Duration::from_secs(5);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// Why the socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The group does not exist.
    #[error("there is no group `{group}` to own the control socket")]
    Group {
        /// Its name.
        group: String,
    },
    /// Another agent answers on it.
    #[error("another agent listens on {path}")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something that is no socket has its name.
    #[error("{path} exists and is no socket")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The path does not fit a socket address.
    #[error("the path {path} has more than {PATH_MAX} bytes, more than a socket's name can have")]
    TooLong {
        /// The path.
        path: PathBuf,
    },
}

impl BindError {
    /// What to do next.
    #[must_use]
    pub fn next_step(&self) -> String {
        match self {
            Self::Group { group } => {
                format!("make the group `{group}`, or set socket_group to one that exists")
            }
            Self::InUse { .. } => {
                "stop that agent, or give this one a socket of its own with --socket".to_owned()
            }
            Self::Io { .. } => {
                "check the directory and its owner, or give another --socket".to_owned()
            }
            Self::NotASocket { path } => {
                format!("move {} away if nobody needs it, or give another --socket", path.display())
            }
            Self::TooLong { .. } => "give a shorter path with --socket".to_owned(),
        }
    }
}

/// The bound socket. Dropping it removes the file, when it is still this one.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    identity: (u64, u64),
    listener: Option<UnixListener>,
}

impl Socket {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listener, once.
    pub fn take_listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Makes the socket at `path` with mode 0660, owned by `group` where given, and its directory when
/// needed. Must be called in a tokio runtime.
///
/// # Errors
/// See [`BindError`]; nothing is left behind.
pub fn bind(path: &Path, group: Option<&str>) -> Result<Socket, BindError> {
    let failed = |what| move |source| BindError::Io { what, path: path.to_owned(), source };
    if path.as_os_str().len() > PATH_MAX {
        return Err(BindError::TooLong { path: path.to_owned() });
    }
    let group = group.map(group_id).transpose()?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(directory).map_err(failed("make the directory of"))?;
    let lock = File::open(directory).map_err(failed("open the directory of"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, errno)| failed("lock the directory of")(errno.into()))?;
    clear(path)?;
    let socket = listen(path).map_err(failed("listen on"))?;
    let made = Made(Some(path));
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))
        .map_err(failed("set the mode of"))?;
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group)).map_err(failed("set the group of"))?;
    }
    let found = std::fs::symlink_metadata(path).map_err(failed("look at"))?;
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true).map_err(failed("listen on"))?;
    let listener = UnixListener::from_std(listener).map_err(failed("listen on"))?;
    made.keep();
    Ok(Socket {
        path: path.to_owned(),
        identity: (found.dev(), found.ino()),
        listener: Some(listener),
    })
}

/// Removes the file again unless it is kept.
struct Made<'a>(Option<&'a Path>);

impl Made<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn group_id(group: &str) -> Result<u32, BindError> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    match Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid.as_raw()),
        _ => Err(BindError::Group { group: group.to_owned() }),
    }
}

/// Removes a socket on which nobody answers. The caller holds the directory's lock.
fn clear(path: &Path) -> Result<(), BindError> {
    let failed = |what| move |source| BindError::Io { what, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed("look at")(source)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(source) if source.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed("remove the left-over"))
        }
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        // Whatever else it says (a full backlog, no permission), somebody may well listen.
        Ok(_) | Err(_) => Err(BindError::InUse { path: path.to_owned() }),
    }
}

/// A listening socket whose file never had more than [`SOCKET_MODE`]: the mode that the descriptor
/// has before bind(2) is the one that the file gets (unix_bind_bsd of net/unix/af_unix.c).
fn listen(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(socket.as_fd(), Mode::from_bits_truncate(SOCKET_MODE))?;
    nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let listening =
        Backlog::new(BACKLOG).and_then(|backlog| nix::sys::socket::listen(&socket, backlog));
    if let Err(errno) = listening {
        let _ = std::fs::remove_file(path);
        return Err(errno.into());
    }
    Ok(socket)
}

/// Serves until `stop` is ready, then gives running operations [`STOP_GRACE`].
///
/// # Errors
/// When the listener fails.
pub async fn serve<A: Api>(
    listener: UnixListener,
    api: Arc<A>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (tell, mut told) = tokio::sync::watch::channel(false);
    let stopped = async move {
        stop.await;
        let _ = tell.send(true);
    };
    let server = axum::serve(listener, router(api)).with_graceful_shutdown(stopped);
    let overdue = async move {
        // An error means that the server itself has ended, and then its branch is ready.
        let _ = told.wait_for(|stopped| *stopped).await;
        tokio::time::sleep(STOP_GRACE).await;
    };
    tokio::select! {
        result = async { server.await } => result,
        () = overdue => Ok(()),
    }
}

/// The API's paths.
pub fn router<A: Api>(api: Arc<A>) -> Router {
    Router::new()
        .route("/v1/status", get(status::<A>))
        .route("/v1/hosts", get(hosts::<A>))
        .route("/v1/networks", get(networks::<A>).post(create_network::<A>))
        .route(
            "/v1/networks/{network}",
            get(network::<A>).patch(update_network::<A>).delete(remove_network::<A>),
        )
        .route("/v1/networks/{network}/vteps", get(vteps::<A>).post(add_vtep::<A>))
        .route("/v1/networks/{network}/vteps/{address}", delete(remove_vtep::<A>))
        .route("/v1/networks/{network}/vteps/exported", get(exported::<A>))
        .route("/v1/networks/{network}/vteps/kernel", get(kernel_links::<A>).post(link_kernel::<A>))
        .route("/v1/networks/{network}/namespace", get(namespace::<A>))
        .route("/v1/attach", post(attach::<A>))
        .route("/v1/detach", post(detach::<A>))
        .route("/v1/endpoints", get(endpoints::<A>))
        .route("/v1/fdb", get(fdb::<A>))
        .route("/v1/neighbors", get(neighbors::<A>))
        .route("/v1/routes", get(routes::<A>))
        .route("/v1/drops", get(drops::<A>))
        .route("/v1/store", get(store::<A>))
        .route("/v1/store/tokens", post(make_token::<A>))
        .route("/v1/stats", get(stats::<A>))
        .route("/v1/gc", post(collect_garbage::<A>))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .with_state(api)
}

// ===== operations =====

type Json<T> = Result<axum::Json<T>, Error>;

/// Runs one operation in a task of its own.
async fn run<T: Send + 'static>(
    operation: impl Future<Output = Answer<T>> + Send + 'static,
) -> Json<T> {
    match tokio::spawn(operation).await {
        Ok(answer) => answer.map(axum::Json),
        Err(err) => {
            tracing::error!(%err, "an operation of the control socket failed");
            Err(Error::internal("the agent failed at this operation")
                .cause("a defect of the agent")
                .next_step("report it with the agent's log; the agent itself goes on"))
        }
    }
}

async fn status<A: Api>(State(api): State<Arc<A>>) -> impl IntoResponse {
    run(async move { api.status().await }).await
}

async fn hosts<A: Api>(State(api): State<Arc<A>>) -> impl IntoResponse {
    run(async move { api.hosts().await }).await
}

async fn networks<A: Api>(State(api): State<Arc<A>>) -> impl IntoResponse {
    run(async move { api.networks().await }).await
}

async fn network<A: Api>(State(api): State<Arc<A>>, Named(name): Named) -> impl IntoResponse {
    run(async move { api.network(name).await }).await
}

async fn create_network<A: Api>(
    State(api): State<Arc<A>>,
    Body(request): Body<CreateNetwork>,
) -> impl IntoResponse {
    run(async move { api.create_network(request).await }).await
}

async fn update_network<A: Api>(
    State(api): State<Arc<A>>,
    Named(name): Named,
    Body(request): Body<UpdateNetwork>,
) -> impl IntoResponse {
    run(async move { api.update_network(name, request).await }).await
}

async fn remove_network<A: Api>(
    State(api): State<Arc<A>>,
    Named(name): Named,
) -> impl IntoResponse {
    run(async move { api.remove_network(name).await }).await
}

async fn vteps<A: Api>(State(api): State<Arc<A>>, Named(name): Named) -> impl IntoResponse {
    run(async move { api.vteps(name).await }).await
}

async fn add_vtep<A: Api>(
    State(api): State<Arc<A>>,
    Named(name): Named,
    Body(request): Body<VtepAdd>,
) -> impl IntoResponse {
    run(async move { api.add_vtep(name, request).await }).await
}

async fn remove_vtep<A: Api>(
    State(api): State<Arc<A>>,
    NamedVtep(name, address): NamedVtep,
) -> impl IntoResponse {
    run(async move { api.remove_vtep(name, address).await }).await
}

async fn exported<A: Api>(State(api): State<Arc<A>>, Named(name): Named) -> impl IntoResponse {
    run(async move { api.exported(name).await }).await
}

async fn kernel_links<A: Api>(State(api): State<Arc<A>>, Named(name): Named) -> impl IntoResponse {
    run(async move { api.kernel_links(name).await }).await
}

async fn link_kernel<A: Api>(
    State(api): State<Arc<A>>,
    Named(name): Named,
    Body(request): Body<LinkKernel>,
) -> impl IntoResponse {
    run(async move { api.link_kernel(name, request).await }).await
}

async fn namespace<A: Api>(State(api): State<Arc<A>>, Named(name): Named) -> impl IntoResponse {
    run(async move { api.namespace(name).await }).await
}

async fn attach<A: Api>(
    State(api): State<Arc<A>>,
    Body(request): Body<Attach>,
) -> impl IntoResponse {
    run(async move { api.attach(request).await }).await
}

async fn detach<A: Api>(
    State(api): State<Arc<A>>,
    Body(request): Body<Detach>,
) -> impl IntoResponse {
    run(async move { api.detach(request).await }).await
}

async fn endpoints<A: Api>(State(api): State<Arc<A>>, Only(name): Only) -> impl IntoResponse {
    run(async move { api.endpoints(name).await }).await
}

async fn fdb<A: Api>(State(api): State<Arc<A>>, Only(name): Only) -> impl IntoResponse {
    run(async move { api.fdb(name).await }).await
}

async fn neighbors<A: Api>(State(api): State<Arc<A>>, Only(name): Only) -> impl IntoResponse {
    run(async move { api.neighbors(name).await }).await
}

async fn routes<A: Api>(State(api): State<Arc<A>>, Only(name): Only) -> impl IntoResponse {
    run(async move { api.routes(name).await }).await
}

async fn drops<A: Api>(State(api): State<Arc<A>>) -> impl IntoResponse {
    run(async move { api.drops().await }).await
}

async fn store<A: Api>(State(api): State<Arc<A>>) -> impl IntoResponse {
    run(async move { api.store().await }).await
}

async fn make_token<A: Api>(
    State(api): State<Arc<A>>,
    Body(request): Body<MakeToken>,
) -> impl IntoResponse {
    run(async move { api.make_token(request).await }).await
}

async fn stats<A: Api>(State(api): State<Arc<A>>) -> impl IntoResponse {
    run(async move { api.stats().await }).await
}

async fn collect_garbage<A: Api>(
    State(api): State<Arc<A>>,
    Body(request): Body<CollectGarbage>,
) -> impl IntoResponse {
    run(async move { api.collect_garbage(request).await }).await
}

async fn unknown_path() -> Error {
    Error::unsupported("this agent does not know that operation")
        .cause("agent and command may be of different versions")
        .next_step("compare `skybridge status` with `skybridge --version`")
}

async fn unknown_method() -> Error {
    Error::new(ErrorCode::MethodNotAllowed, "that path does not take this method")
        .next_step("see the API's paths in the documentation")
}

// ===== requests and answers =====

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, axum::Json(self)).into_response()
    }
}

/// A checked request body.
struct Body<T>(T);

impl<S: Sync, T: DeserializeOwned + Check> FromRequest<S> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self, Error> {
        let body = Limited::new(request.into_body(), BODY_MAX).collect().await;
        let bytes = body.map_err(|err| match err.downcast_ref::<LengthLimitError>() {
            Some(_) => Error::new(ErrorCode::TooLarge, "the request is too large")
                .next_step(format!("send at most {BODY_MAX} bytes")),
            None => Error::bad_request("the request did not arrive whole").cause(err.to_string()),
        })?;
        let value: T = serde_json::from_slice(&bytes.to_bytes()).map_err(|err| {
            Error::bad_request("the request is not understood")
                .cause(err.to_string())
                .next_step("send the JSON that the API's documentation shows")
        })?;
        value.check()?;
        Ok(Self(value))
    }
}

fn named(text: &str) -> Result<String, Error> {
    check::reference(text).map_err(|invalid| {
        Error::bad_request("that is no name or id of a network")
            .cause(invalid.cause)
            .next_step(invalid.next_step)
    })
}

/// The network that the path names.
struct Named(String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        let name = path.map_err(|err| Error::bad_request(err.body_text()))?;
        named(&name).map(Self)
    }
}

/// The network and the VTEP that the path names.
struct NamedVtep(String, IpAddr);

impl<S: Send + Sync> FromRequestParts<S> for NamedVtep {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        type Path = axum::extract::Path<(String, IpAddr)>;
        let path = Path::from_request_parts(parts, state).await;
        let (name, address) = path.map_err(|err| Error::bad_request(err.body_text()))?.0;
        Ok(Self(named(&name)?, address))
    }
}

/// The network that the query limits a listing to.
struct Only(Option<String>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    network: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Only {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let query = Query::<Filter>::from_request_parts(parts, state).await;
        let filter = query.map_err(|err| Error::bad_request(err.body_text()))?.0;
        Ok(Self(filter.network.as_deref().map(named).transpose()?))
    }
}

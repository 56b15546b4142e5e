//! Who asks: by a token of a login, else by the name in the client's certificate, as etcd does.

use tonic::Request;
use tonic::metadata::MetadataMap;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

use super::super::auth::Caller;
use super::super::error::Refusal;
use super::super::store::Store;
use crate::pki;

/// Where clients put their token: etcd's own name, and the one of its HTTP gateway.
const TOKEN: [&str; 2] = ["token", "authorization"];

/// What a client showed when it opened a stream; it is judged at each request on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Credentials {
    token: Option<String>,
    /// The common name in a certificate that the transport has verified.
    certificate: Option<String>,
}

impl Credentials {
    pub(crate) fn of<T>(request: &Request<T>) -> Self {
        Self { token: token(request.metadata()), certificate: common_name(request) }
    }

    /// Who that is now.
    pub(crate) fn caller(&self, store: &Store) -> Result<Caller, Refusal> {
        match &self.token {
            _ if !store.auth().enabled() => Ok(Caller::default()),
            Some(token) => {
                let user = store.token_user(token).ok_or(Refusal::InvalidToken)?;
                Ok(Caller(Some(user)))
            }
            None => Ok(Caller(self.certificate.clone())),
        }
    }
}

/// Who asks. Nobody is looked up while authentication is off.
pub(crate) fn caller<T>(store: &Store, request: &Request<T>) -> Result<Caller, Refusal> {
    if store.auth().enabled() {
        Credentials::of(request).caller(store)
    } else {
        Ok(Caller::default())
    }
}

fn token(metadata: &MetadataMap) -> Option<String> {
    let value = TOKEN.iter().find_map(|name| metadata.get(*name))?;
    // One that is no text is no token, and must not pass for none at all.
    Some(value.to_str().unwrap_or_default().to_owned())
}

/// The name in the certificate that the client showed; the transport lets none in that its own
/// authorities have not signed.
pub(crate) fn common_name<T>(request: &Request<T>) -> Option<String> {
    let info = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>()?;
    let certificates = info.peer_certs()?;
    pki::common_name(certificates.first()?)
}

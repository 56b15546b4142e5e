//! Where the store is and how to reach it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

use super::Error;

/// PEM files for TLS towards the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The CA that signed the store's certificate.
    pub ca: PathBuf,
    /// Our certificate, where the store wants one.
    pub cert: Option<PathBuf>,
    /// The key of our certificate.
    pub key: Option<PathBuf>,
    /// The name that the store's certificate must have; `None` is that of the endpoint.
    pub server_name: Option<String>,
}

/// A user of the store.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub name: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Where the store is and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// URLs of its members: `http://192.0.2.1:2379`, or `https://` with [`Self::tls`].
    pub endpoints: Vec<String>,
    /// What keys begin with, before `/skybridge/v1/`.
    pub prefix: String,
    /// Certificates; `None` for plaintext.
    pub tls: Option<TlsFiles>,
    /// User and password; `None` where authentication is off or by certificate.
    pub user: Option<Credentials>,
    /// How long one connection attempt may take.
    pub connect_timeout: Duration,
    /// How long one call may take, with its repetitions.
    pub request_timeout: Duration,
    /// How often an idle connection is probed.
    pub keep_alive_interval: Duration,
    /// How long the answer to a probe may take.
    pub keep_alive_timeout: Duration,
}

impl StoreConfig {
    /// These endpoints with the default prefix and times, plaintext, without a user.
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            prefix: String::new(),
            tls: None,
            user: None,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            keep_alive_interval: Duration::from_secs(3),
            keep_alive_timeout: Duration::from_secs(3),
        }
    }

    /// What can be said without connecting.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.endpoints.is_empty() {
            return Err(Error::Config(
                "there is no endpoint: give at least one, such as http://192.0.2.1:2379".into(),
            ));
        }
        for endpoint in &self.endpoints {
            let (wanted, other) = match self.tls {
                Some(_) => ("https://", "http://"),
                None => ("http://", "https://"),
            };
            if endpoint.starts_with(other) {
                let what = if self.tls.is_some() {
                    "is plaintext, but certificates are configured: write https://"
                } else {
                    "wants TLS, but no certificates are configured: give the CA file"
                };
                return Err(Error::Config(format!("endpoint {endpoint} {what}")));
            }
            let Some(rest) = endpoint.strip_prefix(wanted) else {
                return Err(Error::Config(format!(
                    "endpoint {endpoint} is no URL: write {wanted}HOST:PORT, such as \
                     {wanted}192.0.2.1:2379"
                )));
            };
            if endpoint.parse::<tonic::transport::Uri>().is_err() || rest.is_empty() {
                return Err(Error::Config(format!("endpoint {endpoint} is no URL")));
            }
        }
        if self.tls.as_ref().is_some_and(|tls| tls.cert.is_some() != tls.key.is_some()) {
            return Err(Error::Config(
                "a client certificate needs its key and the key its certificate: give both".into(),
            ));
        }
        Ok(())
    }

    /// Reads the files and makes the client's options.
    pub(super) async fn options(&self) -> Result<ConnectOptions, Error> {
        let mut options = ConnectOptions::new()
            .with_require_leader(true)
            .with_keep_alive(self.keep_alive_interval, self.keep_alive_timeout)
            .with_keep_alive_while_idle(true)
            .with_connect_timeout(self.connect_timeout)
            .with_auto_token_refresh(true);
        if let Some(user) = &self.user {
            options = options.with_user(user.name.clone(), user.password.clone());
        }
        if let Some(files) = &self.tls {
            let mut tls =
                TlsOptions::new().ca_certificate(Certificate::from_pem(read(&files.ca).await?));
            if let Some(name) = &files.server_name {
                tls = tls.domain_name(name);
            }
            if let (Some(cert), Some(key)) = (&files.cert, &files.key) {
                tls = tls.identity(Identity::from_pem(read(cert).await?, read(key).await?));
            }
            options = options.with_tls(tls);
        }
        Ok(options)
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, Error> {
    tokio::fs::read(path).await.map_err(|error| Error::TlsFile {
        path: path.display().to_string(),
        cause: error.to_string(),
    })
}

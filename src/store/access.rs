//! How a command reaches the store: as the agent does, or as its flags say.

use std::path::PathBuf;
use std::time::Duration;

use membership::store::{Credentials, Store, StoreConfig, TlsFiles};

use super::Error;
use crate::config;
use crate::control::types::StoreAccess;

/// How long one request may take: a person waits, and a defragmentation is slow.
const REQUEST: Duration = Duration::from_secs(10);

/// A store and how to reach it.
#[derive(Clone, Debug)]
pub struct Access {
    config: StoreConfig,
    password_file: Option<(String, PathBuf)>,
}

impl From<StoreAccess> for Access {
    fn from(access: StoreAccess) -> Self {
        let mut wanted = StoreConfig::new(access.endpoints);
        wanted.prefix = access.prefix;
        wanted.tls = access.ca.map(|ca| TlsFiles {
            ca: ca.into(),
            cert: access.certificate.map(Into::into),
            key: access.key.map(Into::into),
            server_name: access.server_name,
        });
        let password_file = access.user.zip(access.password_file.map(Into::into));
        Self { config: wanted, password_file }
    }
}

impl From<&config::Store> for Access {
    fn from(store: &config::Store) -> Self {
        let mut wanted = StoreConfig::new(store.endpoints.iter().cloned());
        wanted.prefix = store.prefix.clone();
        wanted.tls = store.tls.as_ref().map(|tls| TlsFiles {
            ca: tls.ca.clone(),
            cert: tls.identity.as_ref().map(|(certificate, _)| certificate.clone()),
            key: tls.identity.as_ref().map(|(_, key)| key.clone()),
            server_name: tls.server_name.clone(),
        });
        let user = store.user.as_ref();
        let password_file = user.map(|user| (user.name.clone(), user.password_file.clone()));
        Self { config: wanted, password_file }
    }
}

impl Access {
    /// The URLs of the store.
    #[must_use]
    pub fn endpoints(&self) -> &[String] {
        &self.config.endpoints
    }

    /// The store; it connects when it is first used.
    ///
    /// # Errors
    /// When the password cannot be read, or the endpoints make no sense.
    pub fn store(&self) -> Result<Store, Error> {
        self.of(self.config.endpoints.clone())
    }

    /// One of its members.
    ///
    /// # Errors
    /// As [`Self::store`].
    pub fn member(&self, endpoint: &str) -> Result<Store, Error> {
        self.of(vec![endpoint.to_owned()])
    }

    fn of(&self, endpoints: Vec<String>) -> Result<Store, Error> {
        let mut wanted = self.config.clone();
        wanted.endpoints = endpoints;
        wanted.request_timeout = REQUEST;
        if let Some((name, path)) = &self.password_file {
            let text = std::fs::read_to_string(path).map_err(|source| Error::File {
                what: "read the password in",
                path: path.clone(),
                source,
            })?;
            let password = text.lines().next().unwrap_or_default().to_owned();
            wanted.user = Some(Credentials { name: name.clone(), password });
        }
        Ok(Store::lazy(wanted)?)
    }
}

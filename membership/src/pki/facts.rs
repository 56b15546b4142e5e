//! What a certificate says about itself.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Error, Name};

/// The SHA-256 of a certificate in DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// That of a certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate.as_ref()).into())
    }
}

impl fmt::Display for Fingerprint {
    /// URL-safe base64, 43 letters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// The text is no fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no fingerprint of a certificate")]
pub struct ParseFingerprintError;

impl FromStr for Fingerprint {
    type Err = ParseFingerprintError;

    fn from_str(text: &str) -> Result<Self, ParseFingerprintError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| ParseFingerprintError)?;
        bytes.try_into().map(Self).map_err(|_| ParseFingerprintError)
    }
}

/// What a certificate says about itself. Nothing here is a proof; the transport has that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its common name; empty when it has none.
    pub common_name: String,
    /// When it begins to count.
    pub from: SystemTime,
    /// When it ends to count.
    pub until: SystemTime,
    /// Addresses and DNS names it is for.
    pub names: Vec<Name>,
    /// Its public key, as the certificate carries it.
    pub public_key: Vec<u8>,
}

impl Facts {
    /// Those of the first certificate in a PEM file.
    ///
    /// # Errors
    ///
    /// [`Error::File`] and [`Error::Damaged`].
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = super::read(path)?;
        Self::of_pem(&text).map_err(|cause| Error::Damaged {
            path: path.to_owned(),
            what: "certificate",
            cause,
        })
    }

    /// Those of the first certificate in a PEM text, or what is wrong with it.
    pub(crate) fn of_pem(text: &str) -> Result<Self, String> {
        let der =
            CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| error.to_string())?;
        Self::of_der(&der)
    }

    pub(crate) fn of_der(der: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, certificate) =
            X509Certificate::from_der(der.as_ref()).map_err(|error| error.to_string())?;
        let validity = certificate.validity();
        let names = match certificate.subject_alternative_name() {
            Ok(Some(extension)) => {
                extension.value.general_names.iter().filter_map(name_of).collect()
            }
            _ => Vec::new(),
        };
        Ok(Self {
            common_name: common_name_of(&certificate).unwrap_or_default(),
            from: time_of(validity.not_before.timestamp()),
            until: time_of(validity.not_after.timestamp()),
            names,
            public_key: certificate.public_key().raw.to_vec(),
        })
    }

    /// Whether it should be replaced: a third of its life or less is left.
    #[must_use]
    pub fn is_due(&self, now: SystemTime) -> bool {
        let life = self.until.duration_since(self.from).unwrap_or_default();
        self.left(now) <= life / 3
    }

    /// How long it still counts.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Duration {
        self.until.duration_since(now).unwrap_or_default()
    }
}

fn name_of(name: &GeneralName<'_>) -> Option<Name> {
    match name {
        GeneralName::DNSName(name) => Some(Name::Dns((*name).to_owned())),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let v6 = || <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
            v4.or_else(|_| v6()).ok().map(Name::Ip)
        }
        _ => None,
    }
}

fn time_of(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn common_name_of(certificate: &X509Certificate<'_>) -> Option<String> {
    let name = certificate.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

/// The fingerprint of the first certificate in a PEM text, or what is wrong with it.
pub(crate) fn fingerprint_of_pem(text: &str) -> Result<Fingerprint, String> {
    let der = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| error.to_string())?;
    Ok(Fingerprint::of(&der))
}

/// The common name of a certificate; `None` when it has none or cannot be read.
#[must_use]
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate.as_ref()).ok()?;
    common_name_of(&certificate).filter(|name| !name.is_empty())
}

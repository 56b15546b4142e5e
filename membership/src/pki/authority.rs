//! The authority: it makes itself once, and signs certificates of the store and of hosts.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
    SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;

use super::{Error, Facts, Files, Fingerprint, read_optional, write};

const DAY: Duration = Duration::from_secs(86_400);
/// How long the authority counts.
const AUTHORITY_LIFE: Duration = Duration::from_secs(3653 * 86_400);
/// How long its certificates count.
const LIFE: Duration = Duration::from_secs(365 * 86_400);
/// How far before now a certificate begins, for hosts whose clock is behind.
const SLACK: Duration = DAY;

/// An address or a DNS name that a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A DNS name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

/// What a certificate is for.
enum Use {
    Client,
    Server(Vec<Name>),
}

/// The authority of an embedded store.
pub struct Authority {
    pem: String,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    life: Duration,
}

impl std::fmt::Debug for Authority {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// The authority of a state directory; made when there is none yet.
    ///
    /// # Errors
    ///
    /// [`Error::File`], [`Error::Damaged`], [`Error::Make`].
    pub fn open(files: &Files) -> Result<Self, Error> {
        files.make()?;
        let path = files.authority();
        let text = match read_optional(&path)? {
            Some(text) => text,
            None => {
                let text = make()?;
                write(&path, &text)?;
                text
            }
        };
        let authority = Self::read(&path, &text)?;
        // What others trust, without the key; again each time, should it have been lost.
        if read_optional(&files.ca())?.as_deref() != Some(&authority.pem) {
            write(&files.ca(), &authority.pem)?;
        }
        Ok(authority)
    }

    fn read(path: &Path, text: &str) -> Result<Self, Error> {
        let damaged = |cause: String| Error::Damaged {
            path: path.to_owned(),
            what: "authority (its key and certificate)",
            cause,
        };
        let certificate = CertificateDer::from_pem_slice(text.as_bytes())
            .map_err(|error| damaged(error.to_string()))?;
        let facts = Facts::of_der(&certificate).map_err(damaged)?;
        if facts.left(SystemTime::now()).is_zero() {
            return Err(damaged(
                "it has ended; remove the directory and join all hosts anew".into(),
            ));
        }
        let key = KeyPair::from_pem(text).map_err(|error| damaged(error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| damaged(error.to_string()))?;
        let begin = text.find("-----BEGIN CERTIFICATE-----").unwrap_or(0);
        let pem = text.get(begin..).unwrap_or_default().to_owned();
        Ok(Self { pem, certificate, issuer, life: LIFE })
    }

    /// The same, but its certificates count only that long.
    #[must_use]
    pub fn with_life(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    /// By which hosts recognise it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Its certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Makes the store's file when it is missing, ends soon, or is not for all of `names`; tells
    /// whether it did.
    ///
    /// # Errors
    ///
    /// [`Error::File`] and [`Error::Make`].
    pub fn keep_store(&self, files: &Files, names: &[Name]) -> Result<bool, Error> {
        let fits = |facts: &Facts| names.iter().all(|name| facts.names.contains(name));
        // The authority's certificate goes along: who joins knows only its fingerprint.
        let make = || Ok(self.issue("skybridge store", Use::Server(names.to_vec()))? + &self.pem);
        self.keep(&files.store(), fits, make)
    }

    /// Makes the file of this host, or of the administrator, when it is missing, ends soon, or has
    /// another name; tells whether it did.
    ///
    /// # Errors
    ///
    /// [`Error::File`] and [`Error::Make`].
    pub fn keep_client(&self, path: &Path, name: &str) -> Result<bool, Error> {
        self.keep(path, |facts| facts.common_name == name, || self.issue(name, Use::Client))
    }

    fn keep(
        &self,
        path: &Path,
        fits: impl FnOnce(&Facts) -> bool,
        make: impl FnOnce() -> Result<String, Error>,
    ) -> Result<bool, Error> {
        // One that cannot be read is made anew: nothing in it is worth keeping.
        let good = read_optional(path)?.is_some_and(|text| {
            let trusted = || KeyPair::from_pem(&text).is_ok() && self.has_signed(&text);
            Facts::of_pem(&text).is_ok_and(|facts| !facts.is_due(SystemTime::now()) && fits(&facts))
                && trusted()
        });
        if good {
            return Ok(false);
        }
        write(path, &make()?)?;
        Ok(true)
    }

    /// Whether the first certificate of a PEM text is one of this authority's.
    fn has_signed(&self, text: &str) -> bool {
        use x509_parser::prelude::{FromDer as _, X509Certificate};
        let Ok(der) = CertificateDer::from_pem_slice(text.as_bytes()) else { return false };
        let parsed = X509Certificate::from_der(der.as_ref());
        let authority = X509Certificate::from_der(self.certificate.as_ref());
        let (Ok((_, parsed)), Ok((_, authority))) = (parsed, authority) else { return false };
        parsed.verify_signature(Some(authority.public_key())).is_ok()
    }

    /// A new key and its certificate, in PEM.
    fn issue(&self, name: &str, usage: Use) -> Result<String, Error> {
        let key = KeyPair::generate().map_err(failed)?;
        let params = self.params(name, usage)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(key.serialize_pem() + &certificate.pem())
    }

    /// Signs the key of a request as that of host `name`. Nothing else of the request counts.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] when its signature is wrong, so that nobody gets a certificate for a key
    /// that is not its own; [`Error::Make`].
    pub fn sign(&self, request: &[u8], name: &str) -> Result<String, Error> {
        let request = CertificateSigningRequestDer::from(request);
        let mut request = CertificateSigningRequestParams::from_der(&request)
            .map_err(|error| Error::Request(error.to_string()))?;
        request.params = self.params(name, Use::Client)?;
        Ok(request.signed_by(&self.issuer).map_err(failed)?.pem())
    }

    fn params(&self, name: &str, usage: Use) -> Result<CertificateParams, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match &usage {
            Use::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Use::Server(_) => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        if let Use::Server(names) = usage {
            params.subject_alt_names = names.iter().map(alt_name).collect::<Result<_, _>>()?;
        }
        let slack = SLACK.min(self.life / 10);
        set_life(&mut params, slack, self.life);
        Ok(params)
    }
}

fn alt_name(name: &Name) -> Result<SanType, Error> {
    Ok(match name {
        Name::Dns(name) => SanType::DnsName(name.as_str().try_into().map_err(failed)?),
        Name::Ip(ip) => SanType::IpAddress(*ip),
    })
}

fn set_life(params: &mut CertificateParams, slack: Duration, life: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - slack;
    params.not_after = now + life;
    // RFC 5280 section 4.1.2.2: positive, at most 20 bytes, and never the same twice.
    let mut serial: [u8; 16] = rand::random();
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
}

/// A new authority: key and certificate in PEM.
fn make() -> Result<String, Error> {
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "skybridge store authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_life(&mut params, SLACK, AUTHORITY_LIFE);
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(key.serialize_pem() + &certificate.pem())
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Make(error.to_string())
}

/// The public key of a private one in PEM, as certificates carry it.
///
/// # Errors
///
/// [`Error::Make`].
pub(crate) fn public_key(key: &str) -> Result<Vec<u8>, Error> {
    Ok(KeyPair::from_pem(key).map_err(failed)?.subject_public_key_info())
}

/// A new key, and a request in DER for a certificate of host `name`: what a host sends.
///
/// # Errors
///
/// [`Error::Make`].
pub(crate) fn request(name: &str) -> Result<(String, Vec<u8>), Error> {
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let request = params.serialize_request(&key).map_err(failed)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn sandbox() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(dir.path());
        (dir, files)
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn an_authority_is_made_once_and_is_for_its_owner_only() {
        let (_dir, files) = sandbox();
        let first = Authority::open(&files).unwrap();
        let second = Authority::open(&files).unwrap();
        assert_eq!(first.fingerprint(), second.fingerprint());
        assert_eq!((mode(files.directory()), mode(&files.authority())), (0o700, 0o600));
        let facts = Facts::load(&files.ca()).unwrap();
        let years = facts.left(SystemTime::now()).as_secs() / (365 * 86_400);
        assert_eq!(years, 10);
        assert!(!std::fs::read_to_string(files.ca()).unwrap().contains("PRIVATE KEY"));
        let text = first.fingerprint().to_string();
        assert_eq!(text.parse::<Fingerprint>().unwrap(), first.fingerprint());
        std::fs::remove_file(files.ca()).unwrap();
        Authority::open(&files).unwrap();
        assert!(files.ca().exists());
    }

    #[test]
    fn certificates_are_kept_until_a_third_of_their_life_is_left() {
        let (_dir, files) = sandbox();
        let authority = Authority::open(&files).unwrap();
        let names = [Name::Ip([192, 0, 2, 1].into()), Name::Dns("h1".to_owned())];
        assert!(authority.keep_store(&files, &names).unwrap());
        assert!(!authority.keep_store(&files, &names[..1]).unwrap());
        let more = [Name::Ip([192, 0, 2, 9].into())];
        assert!(authority.keep_store(&files, &more).unwrap(), "another address");
        assert!(authority.keep_client(&files.host(), "h1").unwrap());
        assert!(!authority.keep_client(&files.host(), "h1").unwrap());
        assert_eq!(mode(&files.host()), 0o600);
        assert!(authority.keep_client(&files.host(), "h2").unwrap(), "another name");
        let facts = Facts::load(&files.host()).unwrap();
        assert_eq!(facts.common_name, "h2");
        assert!(!facts.is_due(SystemTime::now() + 240 * DAY));
        assert!(facts.is_due(SystemTime::now() + 250 * DAY));
        std::fs::write(files.host(), "junk").unwrap();
        assert!(authority.keep_client(&files.host(), "h2").unwrap(), "one that cannot be read");
        let (_other_dir, other) = sandbox();
        Authority::open(&other).unwrap().keep_client(&files.host(), "h2").unwrap();
        std::fs::remove_file(files.host()).unwrap();
        Authority::open(&other).unwrap().keep_client(&files.host(), "h2").unwrap();
        assert!(authority.keep_client(&files.host(), "h2").unwrap(), "of another authority");
    }

    #[test]
    fn a_request_gets_the_name_that_we_say_and_must_be_signed_by_its_key() {
        let (_dir, files) = sandbox();
        let authority = Authority::open(&files).unwrap();
        let (key, mut request) = request("root").unwrap();
        let signed = authority.sign(&request, "h2").unwrap();
        let facts = Facts::of_pem(&signed).unwrap();
        assert_eq!(facts.common_name, "h2");
        assert!(authority.has_signed(&signed) && KeyPair::from_pem(&key).is_ok());
        *request.last_mut().unwrap() ^= 1;
        assert!(matches!(authority.sign(&request, "h2"), Err(Error::Request(_))));
        assert!(authority.sign(b"junk", "h2").is_err() && authority.sign(b"", "h2").is_err());
    }

    #[test]
    fn an_authority_that_cannot_be_read_is_not_replaced() {
        let (_dir, files) = sandbox();
        files.make().unwrap();
        std::fs::write(files.authority(), "junk").unwrap();
        let error = Authority::open(&files).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(files.authority()).unwrap(), "junk");
    }
}

//! A certificate authority for a test, whose certificates last as long as the test says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::process::run;

/// What `openssl ca` wants to know.
const CONFIG: &str = "\
[ca]
default_ca = lab
[lab]
new_certs_dir = .
database = index.txt
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
copy_extensions = copy
[any]
commonName = supplied
[req]
distinguished_name = name
[name]
";

/// An authority with its certificates, in a directory.
#[derive(Debug, Clone)]
pub struct Pki {
    directory: PathBuf,
}

impl Pki {
    /// A new authority in a new directory, with a certificate `client` that lasts a day.
    ///
    /// # Panics
    ///
    /// If a file cannot be written.
    #[track_caller]
    #[must_use]
    pub fn create(directory: &Path) -> Self {
        fs::create_dir(directory).expect("the lab's directory takes directories");
        let pki = Self { directory: directory.to_owned() };
        fs::write(directory.join("ca.cnf"), CONFIG).expect("a new directory takes files");
        fs::write(directory.join("index.txt"), "").expect("a new directory takes files");
        pki.openssl(&[
            "req",
            "-x509",
            "-config",
            "ca.cnf",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=ca",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
        ]);
        pki.issue("client", &[], Duration::from_secs(86_400));
        pki
    }

    /// Issues the certificate of `name`, or issues it anew, for these addresses.
    ///
    /// # Panics
    ///
    /// If it cannot be issued.
    #[track_caller]
    pub fn issue(&self, name: &str, addresses: &[&str], lasts: Duration) {
        let names: Vec<String> = addresses.iter().map(|ip| format!("IP:{ip}")).collect();
        let names = format!("subjectAltName={}", names.join(","));
        let (key, request) = (format!("{name}.key"), format!("{name}.csr"));
        let subject = format!("/CN={name}");
        let mut args = vec![
            "req",
            "-config",
            "ca.cnf",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            &subject,
            "-keyout",
            &key,
            "-out",
            &request,
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-addext",
            "extendedKeyUsage=serverAuth,clientAuth",
        ];
        if !addresses.is_empty() {
            args.extend(["-addext", &names]);
        }
        self.openssl(&args);
        // Begun a minute ago, and whoever reads the file finds the old or the new one.
        let now = SystemTime::now();
        let (begin, end) = (utc(now - Duration::from_secs(60)), utc(now + lasts));
        let fresh = format!("{name}.new");
        self.openssl(&[
            "ca",
            "-batch",
            "-notext",
            "-config",
            "ca.cnf",
            "-cert",
            "ca.pem",
            "-keyfile",
            "ca.key",
            "-in",
            &request,
            "-out",
            &fresh,
            "-startdate",
            &begin,
            "-enddate",
            &end,
        ]);
        fs::rename(self.directory.join(fresh), self.certificate(name))
            .expect("a file of ours can be renamed");
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// The certificate of `name`.
    #[must_use]
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.pem"))
    }

    /// The key of `name`.
    #[must_use]
    pub fn key(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.key"))
    }

    /// The `[tls]` table of an agent that has the certificate of `name`.
    #[must_use]
    pub fn config(&self, name: &str) -> String {
        format!(
            "[tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}",
            self.ca(),
            self.certificate(name),
            self.key(name)
        )
    }

    #[track_caller]
    fn openssl(&self, args: &[&str]) {
        let mut command = Command::new("openssl");
        command.args(args).current_dir(&self.directory);
        let _ = run(command).expect_success();
    }
}

/// A time as `openssl ca` takes it: `YYYYMMDDHHMMSSZ`.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a date of the Gregorian calendar, counted in eras of 400 years from 1 March 0000.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + later;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_openssl_reads_them() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101000000Z");
        assert_eq!(at(951_782_399), "20000228235959Z");
        assert_eq!(at(951_782_400), "20000229000000Z");
        assert_eq!(at(1_798_761_599), "20261231235959Z");
    }
}

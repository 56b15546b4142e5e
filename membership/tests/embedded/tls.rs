//! Certificates: the server's own, and those it asks of its clients.

use std::path::{Path, PathBuf};
use std::process::Command;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use membership::embedded::{self, Config, Server, Tls};

use super::harness::LOOPBACK;

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    /// A CA, a certificate for 127.0.0.1 and one for a client.
    fn new() -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        let name = ["-addext", "basicConstraints=critical,CA:TRUE"];
        files.openssl(&["req", "-x509", "-out", "ca.pem", "-keyout", "ca.key"], &name, "ca");
        for (who, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
            let (out, key) = (format!("{who}.pem"), format!("{who}.key"));
            let usage = format!("extendedKeyUsage={usage}");
            let extensions = [
                "-addext",
                "subjectAltName=IP:127.0.0.1",
                "-addext",
                &usage,
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ];
            let ca = ["req", "-x509", "-CA", "ca.pem", "-CAkey", "ca.key"];
            files.openssl(&[&ca[..], &["-out", &out, "-keyout", &key]].concat(), &extensions, who);
        }
        files
    }

    fn openssl(&self, command: &[&str], extensions: &[&str], name: &str) {
        let output = Command::new("openssl")
            .args(command)
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-subj", &format!("/CN={name}")])
            .args(extensions)
            .current_dir(self.dir.path())
            .output()
            .expect("openssl is needed: apt-get install openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn tls(&self, client_ca: bool) -> Tls {
        Tls {
            certificate: self.path("server.pem"),
            key: self.path("server.key"),
            client_ca: client_ca.then(|| self.path("ca.pem")),
        }
    }
}

async fn start(tls: Tls, data: &Path) -> Result<Server, embedded::Error> {
    let mut config = Config::new(LOOPBACK, data);
    config.tls = Some(tls);
    Server::start(config).await
}

async fn ask(server: &Server, tls: TlsOptions) -> Result<i64, Error> {
    let endpoint = format!("https://{}", server.local_addr());
    let options = ConnectOptions::new().with_tls(tls);
    let mut client = Client::connect([endpoint], Some(options)).await?;
    Ok(client.put("a", "1", None).await?.header().unwrap().revision())
}

#[tokio::test]
async fn clients_and_server_show_each_other_their_certificates() {
    let (files, data) = (Files::new(), tempfile::tempdir().unwrap());
    let server = start(files.tls(true), data.path()).await.unwrap();
    let trusting = || TlsOptions::new().ca_certificate(Certificate::from_pem(files.read("ca.pem")));
    let identity = Identity::from_pem(files.read("client.pem"), files.read("client.key"));
    assert_eq!(ask(&server, trusting().identity(identity)).await.unwrap(), 2);
    assert!(ask(&server, trusting()).await.is_err(), "a client without certificate was let in");
    let stranger = Identity::from_pem(Files::new().read("client.pem"), files.read("client.key"));
    assert!(ask(&server, trusting().identity(stranger)).await.is_err());
    let plain = Client::connect([format!("http://{}", server.local_addr())], None).await;
    let plain = match plain {
        Ok(mut client) => client.put("a", "1", None).await.is_err(),
        Err(_) => true,
    };
    assert!(plain, "plaintext was let in");
    server.shutdown().await;
}

#[tokio::test]
async fn a_file_that_is_missing_or_no_certificate_is_named() {
    let (files, data) = (Files::new(), tempfile::tempdir().unwrap());
    let mut tls = files.tls(false);
    tls.key = files.path("nowhere.key");
    let error = start(tls, data.path()).await.unwrap_err().to_string();
    assert!(error.contains("nowhere.key") && error.contains("must be PEM"), "{error}");
    let mut tls = files.tls(false);
    std::fs::write(files.path("junk.pem"), "junk").unwrap();
    tls.certificate = files.path("junk.pem");
    let error = start(tls, data.path()).await.unwrap_err();
    assert!(matches!(&error, embedded::Error::Tls { path, .. } if path.ends_with("junk.pem")));
    // The address and the directory are free again.
    start(files.tls(false), data.path()).await.unwrap().shutdown().await;
}

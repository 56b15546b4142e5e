//! The flags that mirror the file.

use std::path::PathBuf;

use clap::Args;

const WHO: &str = "Host and underlay";
const STORE: &str = "Store";
const DATAPATH: &str = "Datapath";
const DOCKER: &str = "Docker";
const FILES: &str = "Files, socket, log";

/// The agent's flags. What they say beats the environment and the file; values are checked together
/// with those.
#[derive(Args, Clone, Debug, Default)]
pub struct Flags {
    /// Configuration file [default: /etc/skybridge/skybridge.toml where it exists] [env: SKYBRIDGE_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Name of this host, unique in the cluster [default: the machine's host name]
    #[arg(long, value_name = "NAME", help_heading = WHO)]
    pub name: Option<String>,

    /// Underlay address of this host, that other hosts can reach; one per family
    #[arg(long, value_name = "IP", help_heading = WHO)]
    pub vtep: Vec<String>,

    /// UDP port of the underlay [default: 4789]
    #[arg(long, value_name = "PORT", help_heading = WHO, allow_negative_numbers = true)]
    pub udp_port: Option<i64>,

    /// Endpoint of the store, several times for a cluster [env: SKYBRIDGE_STORES, separated by commas]
    #[arg(long, value_name = "URL", help_heading = STORE)]
    pub store: Vec<String>,

    /// Serve the embedded store at this address, and use it
    #[arg(long, value_name = "IP:PORT", help_heading = STORE)]
    pub embedded_store: Option<String>,

    /// Allow the store in clear beyond loopback; only on an underlay that you trust
    #[arg(long, help_heading = STORE)]
    pub insecure_store: bool,

    /// Put this in front of the store's keys
    #[arg(long, value_name = "PREFIX", help_heading = STORE)]
    pub store_prefix: Option<String>,

    /// Certificates of the store's authority, PEM
    #[arg(long, value_name = "FILE", help_heading = STORE)]
    pub tls_ca: Option<PathBuf>,

    /// This host's certificate for the store, PEM
    #[arg(long, value_name = "FILE", help_heading = STORE)]
    pub tls_certificate: Option<PathBuf>,

    /// The key of that certificate, PEM
    #[arg(long, value_name = "FILE", help_heading = STORE)]
    pub tls_key: Option<PathBuf>,

    /// User name for the store
    #[arg(long, value_name = "NAME", help_heading = STORE)]
    pub store_user: Option<String>,

    /// File with that user's password on its first line
    #[arg(long, value_name = "FILE", help_heading = STORE)]
    pub store_password_file: Option<PathBuf>,

    /// Worker threads [default: one per CPU, at most 8]
    #[arg(long, value_name = "N", help_heading = DATAPATH, allow_negative_numbers = true)]
    pub workers: Option<i64>,

    /// Do not use this capability: tso, uso, csum, udp-gso, udp-gro, coalesce, multiqueue
    #[arg(long, value_name = "NAME", help_heading = DATAPATH, value_delimiter = ',')]
    pub disable: Vec<String>,

    /// Be a network and IPAM driver of this host's Docker
    #[arg(long, help_heading = DOCKER)]
    pub docker: bool,

    /// Name of the driver, as in `docker network create -d NAME` [default: skybridge]
    #[arg(long, value_name = "NAME", help_heading = DOCKER)]
    pub docker_name: Option<String>,

    /// Scope of the driver's networks: local, or global with a cluster store of Docker or a Swarm [default: local]
    #[arg(long, value_name = "SCOPE", help_heading = DOCKER)]
    pub docker_scope: Option<String>,

    /// Socket for Docker [default: /run/docker/plugins/NAME.sock]
    #[arg(long, value_name = "PATH", help_heading = DOCKER)]
    pub docker_socket: Option<PathBuf>,

    /// Where the agent keeps its state [default: /var/lib/skybridge]
    #[arg(long, value_name = "DIR", help_heading = FILES)]
    pub state_dir: Option<PathBuf>,

    /// Control socket [default: /run/skybridge/agent.sock] [env: SKYBRIDGE_SOCKET]
    #[arg(long, value_name = "PATH", help_heading = FILES)]
    pub socket: Option<PathBuf>,

    /// Group whose members may use the control socket
    #[arg(long, value_name = "GROUP", help_heading = FILES)]
    pub socket_group: Option<String>,

    /// Serve metrics at this address
    #[arg(long, value_name = "IP:PORT", help_heading = FILES)]
    pub metrics: Option<String>,

    /// What is logged: error, warn, info, debug, or a filter such as skybridge=debug [default: info]
    #[arg(long, value_name = "LEVEL", help_heading = FILES)]
    pub log_level: Option<String>,

    /// How the log is written: text or json [default: text]
    #[arg(long, value_name = "FORMAT", help_heading = FILES)]
    pub log_format: Option<String>,
}

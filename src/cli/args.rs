//! The arguments of every command.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};
use encap::MacAddr;
use ipnet::IpNet;

use super::help;
use super::store::{JoinArgs, StoreArgs};
use crate::config::{DEFAULT_SOCKET, Flags};
use crate::control::check;
use crate::control::types::{DEFAULT_DEVICE, DEFAULT_IFNAME, Gateway, Mode, StaticMac};

/// Overlay networks for containers on many hosts, switched in user space
#[derive(Debug, Parser)]
#[command(
    name = "skybridge",
    version,
    long_about = help::ABOUT,
    help_template = help::TOP,
    after_long_help = help::FIRST_STEPS,
    disable_help_subcommand = false,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the switch on this host
    #[command(long_about = help::AGENT, after_long_help = help::AGENT_EXAMPLES)]
    Agent(Box<AgentArgs>),
    /// Run the embedded store by itself; tokens, export, import, compaction and state of a store
    #[command(long_about = help::STORE, after_long_help = help::STORE_EXAMPLES)]
    Store(Box<StoreArgs>),
    /// Join the embedded store of another host
    #[command(long_about = help::JOIN, after_long_help = help::JOIN_EXAMPLES)]
    Join(JoinArgs),
    /// Make, list, change and remove networks
    #[command(long_about = help::NETWORK, after_long_help = help::NETWORK_EXAMPLES)]
    Network {
        /// What to do.
        #[command(subcommand)]
        command: NetworkCommand,
    },
    /// Attach a network namespace to a network
    #[command(long_about = help::ATTACH, after_long_help = help::ATTACH_EXAMPLES)]
    Attach(AttachArgs),
    /// Detach a network namespace from a network
    #[command(long_about = help::DETACH, after_long_help = help::DETACH_EXAMPLES)]
    Detach(DetachArgs),
    /// Show how the agent is: store, session, offloads, networks, warnings
    #[command(long_about = help::STATUS, after_long_help = help::STATUS_EXAMPLES)]
    Status(Listing),
    /// List the hosts and whether they are alive
    #[command(long_about = help::HOSTS, after_long_help = help::HOSTS_EXAMPLES)]
    Hosts(Listing),
    /// List the endpoints of all hosts
    #[command(long_about = help::ENDPOINTS, after_long_help = help::ENDPOINTS_EXAMPLES)]
    Endpoints(NetworkListing),
    /// Show where each MAC is
    #[command(long_about = help::FDB, after_long_help = help::FDB_EXAMPLES)]
    Fdb(NetworkListing),
    /// Show which MAC each address has
    #[command(long_about = help::NEIGHBORS, after_long_help = help::NEIGHBORS_EXAMPLES)]
    Neighbors(NetworkListing),
    /// Show where each range of addresses is, in networks of packets
    #[command(long_about = help::ROUTES, after_long_help = help::ROUTES_EXAMPLES)]
    Routes(NetworkListing),
    /// Show what was dropped, why, and what to look at
    #[command(long_about = help::DROPS, after_long_help = help::DROPS_EXAMPLES)]
    Drops(DropsArgs),
    /// Show counters and limits
    #[command(long_about = help::STATS, after_long_help = help::STATS_EXAMPLES)]
    Stats(StatsArgs),
    /// Find, and with --apply remove, what no living owner has in the store
    #[command(long_about = help::GC, after_long_help = help::GC_EXAMPLES)]
    Gc(GcArgs),
    /// Run a command or a shell in a network's private namespace
    #[command(long_about = help::ENTER, after_long_help = help::ENTER_EXAMPLES)]
    Enter(EnterArgs),
    /// Show it all on this machine, with namespaces as hosts
    #[command(long_about = help::DEMO, after_long_help = help::DEMO_EXAMPLES)]
    Demo(DemoArgs),
    /// Carry what Docker asks a managed plugin to the host's agent; runs inside the plugin
    #[command(hide = true)]
    DockerPlugin(DockerPluginArgs),
    /// Generate and check traffic; used by the demo and the tests
    #[command(hide = true, disable_help_flag = true)]
    Traffic {
        /// Arguments of the generator.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
}

/// `skybridge docker-plugin`.
#[derive(Args, Clone, Debug)]
pub struct DockerPluginArgs {
    /// Where Docker connects
    #[arg(long, value_name = "PATH", default_value = "/run/docker/plugins/skybridge.sock")]
    pub listen: PathBuf,
    /// The agent's socket for Docker
    #[arg(long, value_name = "PATH", default_value = "/run/skybridge/docker.sock")]
    pub agent: PathBuf,
}

/// Which agent is talked to.
#[derive(Args, Clone, Debug)]
pub struct Connection {
    /// Control socket of the agent
    #[arg(
        long,
        value_name = "PATH",
        env = crate::config::environment::SOCKET,
        hide_env_values = true,
        default_value = DEFAULT_SOCKET
    )]
    pub socket: PathBuf,
}

/// A listing of everything.
#[derive(Args, Clone, Debug)]
pub struct Listing {
    /// Print JSON with stable field names
    #[arg(long)]
    pub json: bool,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// A listing that can be limited to a network.
#[derive(Args, Clone, Debug)]
pub struct NetworkListing {
    /// Only this network
    #[arg(value_parser = check::reference)]
    pub network: Option<String>,
    /// How it is printed.
    #[command(flatten)]
    pub listing: Listing,
}

/// `skybridge agent`.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// Print the effective configuration with the source of each value, and end
    #[arg(long, conflicts_with = "cleanup")]
    pub check: bool,
    /// Remove everything this host's agent ever made, and end; the agent must not run
    #[arg(long)]
    pub cleanup: bool,
    /// The flags that mirror the file.
    #[command(flatten)]
    pub flags: Flags,
}

/// `skybridge network`.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Make a network
    #[command(long_about = help::CREATE, after_long_help = help::CREATE_EXAMPLES)]
    Create(CreateArgs),
    /// List the networks
    #[command(visible_alias = "list", after_long_help = help::NETWORK_LS_EXAMPLES)]
    Ls(Listing),
    /// Show a network in full
    #[command(visible_alias = "show", after_long_help = help::INSPECT_EXAMPLES)]
    Inspect(NetworkArgs),
    /// Change a network
    #[command(long_about = help::UPDATE, after_long_help = help::UPDATE_EXAMPLES)]
    Update(UpdateArgs),
    /// Remove a network that has no endpoints
    #[command(after_long_help = help::RM_EXAMPLES)]
    Rm(RemoveArgs),
    /// Static VTEPs: kernel vxlan devices, OVS, hardware
    #[command(long_about = help::VTEP, after_long_help = help::VTEP_EXAMPLES)]
    Vtep {
        /// What to do.
        #[command(subcommand)]
        command: VtepCommand,
    },
}

/// One network to show.
#[derive(Args, Clone, Debug)]
pub struct NetworkArgs {
    /// Name or id of the network
    #[arg(value_name = "NAME", value_parser = check::reference)]
    pub network: String,
    /// How it is printed.
    #[command(flatten)]
    pub listing: Listing,
}

/// `skybridge network create`.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// Name of the network, unique in the cluster
    #[arg(value_parser = check::name)]
    pub name: String,
    /// Subnet of the network, IPv4 or IPv6; several times for several
    #[arg(long = "subnet", value_name = "CIDR", required = true, value_parser = check::subnet)]
    pub subnets: Vec<IpNet>,
    /// How its traffic crosses the underlay
    #[arg(long, value_enum, default_value_t)]
    pub mode: Mode,
    /// VNI, 1 to 16777215 [default: a free one]
    #[arg(long, value_name = "N", value_parser = check::vni)]
    pub vni: Option<u32>,
    /// UDP port of its datagrams on every host, beside those of other networks [default: each host's
    /// own]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub udp_port: Option<u16>,
    /// MTU inside in bytes [default: the least underlay MTU of its hosts less the overhead]
    #[arg(long, value_name = "BYTES", value_parser = check::mtu)]
    pub mtu: Option<u16>,
    /// Address that every host answers to as the network's router, at most one per subnet
    /// [default: none]
    #[arg(long, value_name = "IP|none", value_parser = gateway)]
    pub gateway: Vec<Gateway>,
    /// Let endpoints reach the world, masqueraded behind their host's address; a vxlan network
    /// needs a gateway for it
    #[arg(long)]
    pub nat_outgoing: bool,
    /// Addresses that are never given out: one, a range IP-IP, or a prefix; several times for several
    #[arg(long, value_name = "IP|RANGE", value_parser = check::range)]
    pub exclude: Vec<String>,
    /// Further option; several times for several
    #[arg(long = "option", short = 'o', value_name = "KEY=VALUE", value_parser = check::pair)]
    pub options: Vec<(String, String)>,
    /// Label of your own; several times for several
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = check::pair)]
    pub labels: Vec<(String, String)>,
    /// How it is printed.
    #[command(flatten)]
    pub listing: Listing,
}

/// `skybridge network update`.
#[derive(Args, Clone, Debug)]
#[command(
    override_usage = "skybridge network update [OPTIONS] <NAME>",
    group = ArgGroup::new("change").required(true).multiple(true).args(["mtu", "nat_outgoing", "options", "labels"])
)]
pub struct UpdateArgs {
    /// Name or id of the network
    #[arg(value_name = "NAME", value_parser = check::reference)]
    pub network: String,
    /// MTU inside in bytes, or `auto` to derive it from the underlay
    #[arg(long, value_name = "BYTES|auto", value_parser = mtu_or_auto)]
    pub mtu: Option<u16>,
    /// Let endpoints reach the world, or with `=false` no more
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub nat_outgoing: Option<bool>,
    /// Set an option; without `=VALUE` back to its default
    #[arg(long = "option", short = 'o', value_name = "KEY[=VALUE]", value_parser = change)]
    pub options: Vec<(String, Option<String>)>,
    /// Set a label; without `=VALUE` remove it
    #[arg(long = "label", value_name = "KEY[=VALUE]", value_parser = change)]
    pub labels: Vec<(String, Option<String>)>,
    /// How it is printed.
    #[command(flatten)]
    pub listing: Listing,
}

/// `skybridge network rm`.
#[derive(Args, Clone, Debug)]
pub struct RemoveArgs {
    /// Name or id of the network
    #[arg(value_name = "NAME", value_parser = check::reference)]
    pub network: String,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// `skybridge network vtep`.
#[derive(Debug, Subcommand)]
pub enum VtepCommand {
    /// Add a static VTEP, or replace what is known of it
    #[command(long_about = help::VTEP_ADD, after_long_help = help::VTEP_ADD_EXAMPLES)]
    Add(VtepAddArgs),
    /// Print our endpoints as entries of a kernel vxlan device, or enter them into one
    #[command(long_about = help::VTEP_EXPORT, after_long_help = help::VTEP_EXPORT_EXAMPLES)]
    Export(VtepExportArgs),
    /// Take the entries of a kernel vxlan device as static endpoints, and follow them
    #[command(long_about = help::VTEP_IMPORT, after_long_help = help::VTEP_IMPORT_EXAMPLES)]
    Import(VtepImportArgs),
    /// Remove a static VTEP
    #[command(after_long_help = help::VTEP_RM_EXAMPLES)]
    Rm(VtepRemoveArgs),
    /// List the static VTEPs of a network, and the kernel devices of this host
    #[command(visible_alias = "list", after_long_help = help::VTEP_LS_EXAMPLES)]
    Ls(NetworkArgs),
}

/// `skybridge network vtep add`.
#[derive(Args, Clone, Debug)]
pub struct VtepAddArgs {
    /// Name or id of the network
    #[arg(value_name = "NAME", value_parser = check::reference)]
    pub network: String,
    /// Underlay address of the VTEP
    #[arg(value_parser = check::ip)]
    pub address: IpAddr,
    /// UDP port of the VTEP [default: the network's]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// MAC that is behind it, with the addresses it has; several times for several
    #[arg(long = "mac", value_name = "MAC[=IP,IP...]", value_parser = known_mac)]
    pub macs: Vec<StaticMac>,
    /// How it is printed.
    #[command(flatten)]
    pub listing: Listing,
}

/// A vxlan device of this host.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// Namespace of the device: a name of `ip netns`, a path, whose last part may have one `*`, or
    /// the id of a process in it
    #[arg(long, value_name = "NAME|PATH|PID", value_parser = netns)]
    pub netns: Option<String>,
    /// The vxlan device in it
    #[arg(long, value_name = "IFNAME", default_value = DEFAULT_DEVICE, value_parser = check::ifname)]
    pub dev: String,
}

/// How entries are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    /// Lines of bridge(8) and ip-neighbour(8)
    BridgeFdb,
}

/// `skybridge network vtep export`.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("deed").args(["apply", "watch", "stop"]))]
pub struct VtepExportArgs {
    /// Name or id of the network
    #[arg(value_name = "NAME", value_parser = check::reference)]
    pub network: String,
    /// Which device.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// How the entries are printed
    #[arg(long, value_enum, default_value = "bridge-fdb")]
    pub format: ExportFormat,
    /// Enter them now, and remove those of ours that are no longer true; once
    #[arg(long, requires = "netns")]
    pub apply: bool,
    /// Enter them and keep them true from now on, also when the agent or the device starts anew
    #[arg(long, requires = "netns")]
    pub watch: bool,
    /// End --watch, and remove what was entered
    #[arg(long)]
    pub stop: bool,
    /// How it is printed.
    #[command(flatten)]
    pub listing: Listing,
}

/// `skybridge network vtep import`.
#[derive(Args, Clone, Debug)]
pub struct VtepImportArgs {
    /// Name or id of the network
    #[arg(value_name = "NAME", value_parser = check::reference)]
    pub network: String,
    /// Which device.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Underlay address of the device's own VTEP, for what is on its side [default: this host's]
    #[arg(long, value_name = "IP", value_parser = check::ip)]
    pub vtep: Option<IpAddr>,
    /// Follow it no longer, and take what it said out of the network
    #[arg(long)]
    pub stop: bool,
    /// Take out what this host imported, which is gone for good
    #[arg(long, value_name = "NAME", requires = "stop", conflicts_with = "netns", value_parser = check::name)]
    pub host: Option<String>,
    /// How it is printed.
    #[command(flatten)]
    pub listing: Listing,
}

/// `skybridge network vtep rm`.
#[derive(Args, Clone, Debug)]
pub struct VtepRemoveArgs {
    /// Name or id of the network
    #[arg(value_name = "NAME", value_parser = check::reference)]
    pub network: String,
    /// Underlay address of the VTEP
    #[arg(value_parser = check::ip)]
    pub address: IpAddr,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// `skybridge attach`.
#[derive(Args, Clone, Debug)]
pub struct AttachArgs {
    /// Name or id of the network
    #[arg(value_parser = check::reference)]
    pub network: String,
    /// Namespace: a name of `ip netns`, a path, or the id of a process in it
    #[arg(long, value_name = "NAME|PATH|PID", value_parser = netns)]
    pub netns: String,
    /// Address to take, at most one per subnet [default: a free one of each subnet]
    #[arg(long = "ip", value_name = "IP", value_parser = check::ip)]
    pub ips: Vec<IpAddr>,
    /// MAC to take [default: 02:42 and the IPv4 address]
    #[arg(long, value_parser = check::mac)]
    pub mac: Option<MacAddr>,
    /// Take over the MAC, addresses, name and labels of this endpoint, which is cut off where it was
    #[arg(long = "move", value_name = "ENDPOINT", value_parser = check::reference, conflicts_with_all = ["ips", "mac"])]
    pub moves: Option<String>,
    /// Name of the interface in the namespace
    #[arg(long, value_name = "IFNAME", default_value = DEFAULT_IFNAME, value_parser = check::ifname)]
    pub ifname: String,
    /// Name of the endpoint
    #[arg(long, value_parser = check::name)]
    pub name: Option<String>,
    /// Set the namespace's default routes to the network's gateway
    #[arg(long)]
    pub default_route: bool,
    /// Label of your own; several times for several
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = check::pair)]
    pub labels: Vec<(String, String)>,
    /// How it is printed.
    #[command(flatten)]
    pub listing: Listing,
}

/// `skybridge detach`.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("what").required(true).args(["netns", "id"]))]
pub struct DetachArgs {
    /// Name or id of the network
    #[arg(value_parser = check::reference, required_unless_present = "id")]
    pub network: Option<String>,
    /// Namespace to detach: a name of `ip netns`, a path, or the id of a process in it
    #[arg(long, value_name = "NAME|PATH|PID", value_parser = netns)]
    pub netns: Option<String>,
    /// Endpoint to detach, by the id that `skybridge endpoints` shows
    #[arg(long, value_name = "ENDPOINT", value_parser = check::reference)]
    pub id: Option<String>,
    /// How it is printed.
    #[command(flatten)]
    pub listing: Listing,
}

/// `skybridge drops`.
#[derive(Args, Clone, Debug)]
pub struct DropsArgs {
    /// Show the reasons that never happened too, and what each means
    #[arg(long)]
    pub all: bool,
    /// How it is printed.
    #[command(flatten)]
    pub listing: Listing,
}

/// `skybridge stats`.
#[derive(Args, Clone, Debug)]
pub struct StatsArgs {
    /// Show rates, again and again until interrupted
    #[arg(long)]
    pub watch: bool,
    /// Seconds between two looks with --watch
    #[arg(long, value_name = "SECONDS", default_value_t = 1, requires = "watch",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// Show the share of each worker
    #[arg(long, conflicts_with = "watch")]
    pub workers: bool,
    /// Show the counters that are zero too
    #[arg(long)]
    pub all: bool,
    /// How it is printed.
    #[command(flatten)]
    pub listing: Listing,
}

/// `skybridge gc`.
#[derive(Args, Clone, Debug)]
pub struct GcArgs {
    /// Remove it; without this it is only shown
    #[arg(long)]
    pub apply: bool,
    /// This host will not come back: take what it has at once, and its record too
    #[arg(long, value_name = "NAME", value_parser = check::name)]
    pub host: Option<String>,
    /// How it is printed.
    #[command(flatten)]
    pub listing: Listing,
}

/// `skybridge enter`.
#[derive(Args, Clone, Debug)]
pub struct EnterArgs {
    /// Name or id of the network
    #[arg(value_parser = check::reference)]
    pub network: String,
    /// Command to run there [default: your shell]
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<std::ffi::OsString>,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// `skybridge demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Hosts to make, 2 to 9
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u8).range(2..=9))]
    pub hosts: u8,
    /// Mode of the network
    #[arg(long, value_enum, default_value_t)]
    pub mode: Mode,
    /// Leave everything up at the end and say how to enter it
    #[arg(long)]
    pub keep: bool,
    /// Seconds of each run of the comparison; 0 leaves the comparison out
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    pub seconds: f64,
    /// No colours
    #[arg(long)]
    pub no_color: bool,
}

fn gateway(text: &str) -> Result<Gateway, check::Invalid> {
    match text {
        "none" => Ok(Gateway::None),
        _ => check::ip(text).map(|ip| Gateway::Addresses(vec![ip])),
    }
}

fn mtu_or_auto(text: &str) -> Result<u16, check::Invalid> {
    if text == "auto" { Ok(0) } else { check::mtu(text) }
}

fn change(text: &str) -> Result<(String, Option<String>), check::Invalid> {
    if text.contains('=') {
        check::pair(text).map(|(key, value)| (key, Some(value)))
    } else {
        check::pair(&format!("{text}=")).map(|(key, _)| (key, None))
    }
}

fn known_mac(text: &str) -> Result<StaticMac, check::Invalid> {
    let (mac, ips) = text.split_once('=').unwrap_or((text, ""));
    let ips = ips.split(',').filter(|ip| !ip.is_empty()).map(check::ip);
    Ok(StaticMac { mac: check::mac(mac)?, ips: ips.collect::<Result<_, _>>()? })
}

/// The namespace as the agent can resolve it, from here and from this process.
fn netns(text: &str) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let directory = match text.contains('/') && !text.starts_with('/') {
        true => std::env::current_dir()?,
        false => PathBuf::from("/"),
    };
    Ok(check::netns_for_agent(text, &directory, std::process::id())?)
}

fn seconds(text: &str) -> Result<f64, check::Invalid> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=600.0).contains(&seconds) => Ok(seconds),
        _ => {
            Err(check::Invalid::new("not a number of seconds", "write 0 to 600, such as 2 or 0.5"))
        }
    }
}

//! Commands and their output. Those that talk to an agent do so through [`Client`] alone; those that
//! are a program of their own (`agent`, `store`, `demo`) are started through [`Entry`].

mod args;
mod enter;
mod help;
mod kernel;
mod plugin;
pub mod render;
mod store;
mod table;
mod watch;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::{ContextKind, ContextValue};
use serde::Serialize;

pub use args::Cli;
pub use table::Style;

use crate::config::{self, Config, Effective, Purpose};
use crate::control::check::{Check, Invalid};
use crate::control::client::{self, Client};
use crate::control::types::{
    self, Attach, CollectGarbage, CreateNetwork, Detach, Gateway, Mode, UpdateNetwork, VtepAdd,
};
use args::{Command, Connection, Listing, NetworkCommand, VtepCommand};
use render::Sorted as _;
use table::Tone;

/// The exit code of wrong usage or configuration.
pub const USAGE: u8 = 2;

/// Why a command failed, as it is told to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What failed.
    pub error: String,
    /// Why.
    pub cause: Option<String>,
    /// What to do next.
    pub next_step: Option<String>,
    /// Whether the command was used or configured wrongly: exit code 2 instead of 1.
    pub usage: bool,
}

impl Failure {
    /// A failure with exit code 1.
    #[must_use]
    pub fn new(error: impl Into<String>) -> Self {
        Self { error: error.into(), cause: None, next_step: None, usage: false }
    }

    /// Adds why.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Adds what to do next.
    #[must_use]
    pub fn next_step(mut self, next_step: impl Into<String>) -> Self {
        self.next_step = Some(next_step.into());
        self
    }

    fn usage(mut self) -> Self {
        self.usage = true;
        self
    }

    /// The three lines that go to standard error.
    #[must_use]
    pub fn render(&self, style: Style) -> String {
        let mut text = format!("{} {}\n", style.paint(Tone::Alarm, "error:"), self.error);
        for (name, line) in [("cause:", &self.cause), ("try:", &self.next_step)] {
            if let Some(line) = line {
                text.push_str(&format!("{} {line}\n", style.paint(Tone::Heading, name)));
            }
        }
        text
    }
}

impl From<types::Error> for Failure {
    fn from(error: types::Error) -> Self {
        let types::Error { message, cause, next_step, .. } = error;
        Self { error: message, cause, next_step, usage: false }
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        let next_step = error.next_step();
        match error {
            client::Error::Agent(error) => error.into(),
            client::Error::NoAgent { socket, source } => Self {
                error: format!("no agent answers on {}", socket.display()),
                cause: Some(source.to_string()),
                next_step,
                usage: false,
            },
            other => Self { error: other.to_string(), cause: None, next_step, usage: false },
        }
    }
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Self {
        Self::new("the configuration cannot be used")
            .cause(error.to_string())
            .next_step(error.next_step())
            .usage()
    }
}

/// `skybridge store`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Address to serve at.
    pub listen: SocketAddr,
    /// Where the data is kept.
    pub data: PathBuf,
    /// Certificates; in clear without.
    pub tls: Option<StoreTls>,
}

/// Certificates of `skybridge store`, PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreTls {
    /// Its certificate with the chain.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
    /// Authorities of the clients; without, clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// `skybridge demo`.
#[derive(Clone, Debug, PartialEq)]
pub struct DemoOptions {
    /// Hosts, 2 to 9.
    pub hosts: usize,
    /// Mode of the network.
    pub mode: Mode,
    /// Leave everything up at the end.
    pub keep: bool,
    /// Seconds of each run of the comparison; 0 leaves it out.
    pub seconds: f64,
    /// Colours.
    pub color: bool,
}

/// The programs behind the commands that do not talk to an agent.
pub trait Entry {
    /// Runs the agent until it is told to stop. `read` reads the configuration again.
    ///
    /// # Errors
    /// Why it did not start, or ended.
    fn agent(&self, effective: Effective, read: config::Read) -> Result<ExitCode, Failure>;

    /// Removes everything this host's agent ever made.
    ///
    /// # Errors
    /// What could not be removed.
    fn cleanup(&self, config: Config) -> Result<ExitCode, Failure>;

    /// Runs the embedded store until it is told to stop.
    ///
    /// # Errors
    /// Why it did not start, or ended.
    fn store(&self, options: StoreOptions) -> Result<ExitCode, Failure>;

    /// Runs the demo.
    ///
    /// # Errors
    /// Why it stopped.
    fn demo(&self, options: DemoOptions) -> Result<ExitCode, Failure>;

    /// Runs the traffic generator with its own arguments.
    ///
    /// # Errors
    /// Why it stopped.
    fn traffic(&self, args: Vec<OsString>) -> Result<ExitCode, Failure>;
}

/// Runs the command that `args` (the program's name first) say, and gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>, entry: &impl Entry) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(err) if err.kind() == clap::error::ErrorKind::ValueValidation => {
            return fail(&refused_value(&err));
        }
        Err(err) => {
            // Help and version go to standard output with code 0, faults to standard error with 2.
            let code = err.exit_code();
            let _ = err.print();
            return ExitCode::from(u8::try_from(code).unwrap_or(USAGE));
        }
    };
    match dispatch(cli.command, entry) {
        Ok(code) => code,
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    let mut stderr = io::stderr().lock();
    let style = Style::for_output(stderr.is_terminal());
    let _ = stderr.write_all(failure.render(style).as_bytes());
    if failure.usage { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
}

/// A value that its own parser refused, in the form that all our errors have.
fn refused_value(err: &clap::Error) -> Failure {
    let context = |kind| match err.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let argument = context(ContextKind::InvalidArg);
    let value = context(ContextKind::InvalidValue);
    let failure = Failure::new(format!("`{value}` is no value of {argument}")).usage();
    let Some(source) = std::error::Error::source(err) else { return failure };
    match source.downcast_ref::<Invalid>() {
        Some(Invalid { cause, next_step }) => failure.cause(cause).next_step(next_step),
        None => failure.cause(source.to_string()).next_step("see `--help`"),
    }
}

fn dispatch(command: Command, entry: &impl Entry) -> Result<ExitCode, Failure> {
    match command {
        Command::Agent(args) => agent(&args, entry),
        Command::Store(args) => store::run(*args, entry),
        Command::Join(args) => store::join(&args),
        Command::Demo(args) => entry.demo(DemoOptions {
            hosts: usize::from(args.hosts),
            mode: args.mode,
            keep: args.keep,
            seconds: args.seconds,
            color: !args.no_color && Style::for_output(io::stdout().is_terminal()) == Style::COLOR,
        }),
        Command::DockerPlugin(args) => block_on(plugin::serve(args)),
        Command::Traffic { args } => entry.traffic(args),
        Command::Enter(args) => {
            let client = client(&args.connection);
            let namespace = block_on(async { Ok(client.namespace(&args.network).await?) })?;
            Err(enter::enter(&namespace, &args.command))
        }
        command => block_on(ask(command)),
    }
}

fn agent(args: &args::AgentArgs, entry: &impl Entry) -> Result<ExitCode, Failure> {
    let purpose = if args.cleanup { Purpose::CleanUp } else { Purpose::Run };
    let flags = args.flags.clone();
    let read = move || config::load(&flags, |name| std::env::var(name).ok(), purpose);
    let effective = read()?;
    if args.check {
        return print(&effective.to_string());
    }
    if args.cleanup {
        entry.cleanup(effective.config)
    } else {
        entry.agent(effective, Box::new(read))
    }
}

fn client(connection: &Connection) -> Client {
    Client::new(&connection.socket)
}

fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| Failure::new("cannot start the client").cause(err.to_string()))?;
    runtime.block_on(future)
}

/// The commands that ask an agent.
async fn ask(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Network { command } => network(command).await,
        Command::Attach(args) => {
            let request = Attach {
                network: args.network,
                netns: args.netns,
                ips: args.ips,
                mac: args.mac,
                moves: args.moves,
                ifname: args.ifname,
                name: args.name,
                default_route: args.default_route,
                labels: args.labels.into_iter().collect(),
            };
            checked(&request)?;
            let answer = client(&args.listing.connection).attach(&request).await?;
            show(&args.listing, &answer, render::attachment)
        }
        Command::Detach(args) => {
            let request = Detach { network: args.network, netns: args.netns, endpoint: args.id };
            checked(&request)?;
            let answer = client(&args.listing.connection).detach(&request).await?;
            show(&args.listing, &answer, |answer, style| render::detached(answer, style))
        }
        Command::Status(listing) => {
            let mut answer = client(&listing.connection).status().await?;
            answer.networks.sort_rows();
            show(&listing, &answer, render::status)
        }
        Command::Hosts(listing) => {
            let mut answer = client(&listing.connection).hosts().await?;
            answer.sort_rows();
            show(&listing, &answer, |rows, style| render::hosts(rows, style))
        }
        Command::Endpoints(args) => {
            let client = client(&args.listing.connection);
            let mut answer = client.endpoints(args.network.as_deref()).await?;
            answer.sort_rows();
            show(&args.listing, &answer, |rows, style| render::endpoints(rows, style))
        }
        Command::Fdb(args) => {
            let client = client(&args.listing.connection);
            let mut answer = client.fdb(args.network.as_deref()).await?;
            answer.sort_rows();
            show(&args.listing, &answer, |rows, style| render::fdb(rows, style))
        }
        Command::Neighbors(args) => {
            let client = client(&args.listing.connection);
            let mut answer = client.neighbors(args.network.as_deref()).await?;
            answer.sort_rows();
            show(&args.listing, &answer, |rows, style| render::neighbors(rows, style))
        }
        Command::Routes(args) => {
            let client = client(&args.listing.connection);
            let mut answer = client.routes(args.network.as_deref()).await?;
            answer.sort_rows();
            show(&args.listing, &answer, |rows, style| render::routes(rows, style))
        }
        Command::Drops(args) => {
            let mut answer = client(&args.listing.connection).drops().await?;
            answer.sort_rows();
            show(&args.listing, &answer, |rows, style| render::drops(rows, args.all, style))
        }
        Command::Gc(args) => {
            let request = CollectGarbage { apply: args.apply, host: args.host };
            checked(&request)?;
            let mut answer = client(&args.listing.connection).collect_garbage(&request).await?;
            answer.sort_rows();
            show(&args.listing, &answer, |rows, style| render::garbage(rows, style))
        }
        Command::Stats(args) if args.watch => watch::watch(&args).await,
        Command::Stats(args) => {
            let answer = client(&args.listing.connection).stats().await?;
            show(&args.listing, &answer, |stats, style| {
                render::stats(stats, args.all, args.workers, style)
            })
        }
        Command::Agent(_)
        | Command::Store(_)
        | Command::Join(_)
        | Command::Demo(_)
        | Command::DockerPlugin(_)
        | Command::Traffic { .. }
        | Command::Enter(_) => Err(Failure::new("that command asks no agent")),
    }
}

async fn network(command: NetworkCommand) -> Result<ExitCode, Failure> {
    match command {
        NetworkCommand::Create(args) => {
            let request = CreateNetwork {
                name: args.name,
                subnets: args.subnets,
                mode: args.mode,
                vni: args.vni,
                udp_port: args.udp_port,
                mtu: args.mtu,
                gateway: gateway(args.gateway)?,
                exclude: args.exclude,
                nat_outgoing: args.nat_outgoing,
                options: args.options.into_iter().collect(),
                labels: args.labels.into_iter().collect(),
            };
            checked(&request)?;
            let answer = client(&args.listing.connection).create_network(&request).await?;
            show(&args.listing, &answer, render::network)
        }
        NetworkCommand::Ls(listing) => {
            let mut answer = client(&listing.connection).networks().await?;
            answer.sort_rows();
            show(&listing, &answer, |rows, style| render::networks(rows, style))
        }
        NetworkCommand::Inspect(args) => {
            let answer = client(&args.listing.connection).network(&args.network).await?;
            show(&args.listing, &answer, render::network)
        }
        NetworkCommand::Update(args) => {
            let request = UpdateNetwork {
                mtu: args.mtu,
                nat_outgoing: args.nat_outgoing,
                options: args.options.into_iter().collect(),
                labels: args.labels.into_iter().collect(),
            };
            checked(&request)?;
            let client = client(&args.listing.connection);
            let answer = client.update_network(&args.network, &request).await?;
            show(&args.listing, &answer, render::network)
        }
        NetworkCommand::Rm(args) => {
            client(&args.connection).remove_network(&args.network).await?;
            print(&format!("removed network {}\n", args.network))
        }
        NetworkCommand::Vtep { command } => vtep(command).await,
    }
}

async fn vtep(command: VtepCommand) -> Result<ExitCode, Failure> {
    match command {
        VtepCommand::Add(args) => {
            let request = VtepAdd { address: args.address, port: args.port, macs: args.macs };
            checked(&request)?;
            let client = client(&args.listing.connection);
            let answer = client.add_vtep(&args.network, &request).await?;
            show(&args.listing, &answer, render::vtep)
        }
        VtepCommand::Rm(args) => {
            client(&args.connection).remove_vtep(&args.network, args.address).await?;
            print(&format!("removed VTEP {} from network {}\n", args.address, args.network))
        }
        VtepCommand::Export(args) => kernel::export(args).await,
        VtepCommand::Import(args) => kernel::import(args).await,
        VtepCommand::Ls(args) => {
            let client = client(&args.listing.connection);
            let mut answer = client.vteps(&args.network).await?;
            answer.sort_rows();
            let links = match args.listing.json {
                true => Vec::new(),
                false => client.kernel_links(&args.network).await?,
            };
            show(&args.listing, &answer, |rows, style| {
                let devices = match links.is_empty() {
                    true => String::new(),
                    false => format!("\n{}", render::kernel_links(&links, style)),
                };
                render::vteps(rows, style) + &devices
            })
        }
    }
}

/// Refuses here what the agent would refuse anyway.
fn checked(request: &impl Check) -> Result<(), Failure> {
    request.check().map_err(|error| Failure::from(error).usage())
}

/// One gateway out of several flags.
fn gateway(given: Vec<Gateway>) -> Result<Gateway, Failure> {
    let mut addresses = Vec::new();
    let several = given.len() > 1;
    for gateway in given {
        match gateway {
            Gateway::Addresses(more) => addresses.extend(more),
            word if several => {
                return Err(Failure::new(format!("`--gateway {word}` stands alone"))
                    .next_step("give addresses, or that word, not both")
                    .usage());
            }
            word => return Ok(word),
        }
    }
    if addresses.is_empty() { Ok(Gateway::None) } else { Ok(Gateway::Addresses(addresses)) }
}

/// Prints an answer as JSON or as text.
fn show<T: Serialize + ?Sized>(
    listing: &Listing,
    answer: &T,
    text: impl FnOnce(&T, Style) -> String,
) -> Result<ExitCode, Failure> {
    if listing.json {
        print(&json(answer)?)
    } else {
        print(&text(answer, Style::for_output(io::stdout().is_terminal())))
    }
}

/// The answer as `--json` prints it.
fn json<T: Serialize + ?Sized>(answer: &T) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(answer)
        .map_err(|err| Failure::new("cannot write the answer").cause(err.to_string()))?;
    Ok(format!("{text}\n"))
}

/// Writes to standard output. A reader that has gone away is no failure.
fn print(text: &str) -> Result<ExitCode, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(err) if err.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new("cannot write the output").cause(err.to_string()))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

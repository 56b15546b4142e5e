//! `skybridge store` with its commands, and `skybridge join`.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use membership::store::Scope;
use membership::transfer::ImportOptions;

use super::args::{Connection, Listing};
use super::{
    Entry, Failure, StoreOptions, StoreTls, Style, client, help, json, print, render, show,
};
use crate::config::{self, Flags, Purpose};
use crate::control::check::{self, Invalid};
use crate::control::types::MakeToken;
use crate::store::access::Access;
use crate::store::{self, admin};

/// `skybridge store`.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct StoreArgs {
    /// What to do; without, the embedded store is served.
    #[command(subcommand)]
    pub command: Option<StoreCommand>,
    /// How it is served.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// How the embedded store is served by itself.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Address to serve the etcd API at
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:2379")]
    pub listen: SocketAddr,
    /// Where the data is kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/skybridge/store")]
    pub data: PathBuf,
    /// Certificate of this server with its chain, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// The key of that certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Let in only clients with a certificate of these authorities, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_client_ca: Option<PathBuf>,
    /// Serve in clear beyond loopback; only on an underlay that you trust
    #[arg(long)]
    pub insecure_store: bool,
}

/// The commands on a store.
#[derive(Clone, Debug, Subcommand)]
pub enum StoreCommand {
    /// Print a token by which one host joins the store that this host's agent serves
    #[command(long_about = help::TOKEN, after_long_help = help::TOKEN_EXAMPLES)]
    Token(TokenArgs),
    /// Show the members of the store
    #[command(long_about = help::STORE_STATUS, after_long_help = help::STORE_STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Write all records of the store to a file
    #[command(long_about = help::EXPORT, after_long_help = help::EXPORT_EXAMPLES)]
    Export(ExportArgs),
    /// Put the records of an export into a store
    #[command(long_about = help::IMPORT, after_long_help = help::IMPORT_EXAMPLES)]
    Import(ImportArgs),
    /// Forget the store's history
    #[command(long_about = help::COMPACT, after_long_help = help::COMPACT_EXAMPLES)]
    Compact(CompactArgs),
}

/// Which store, and as whom.
#[derive(Args, Clone, Debug)]
pub struct StoreAccess {
    /// Endpoint of the store, several times for a cluster [default: as the agent on this host]
    #[arg(long, value_name = "URL", help_heading = "Store")]
    pub store: Vec<String>,
    /// What the store's keys begin with, before `/skybridge/`
    #[arg(long, value_name = "PREFIX", help_heading = "Store", requires = "store")]
    pub store_prefix: Option<String>,
    /// Allow the store in clear beyond loopback
    #[arg(long, help_heading = "Store", requires = "store")]
    pub insecure_store: bool,
    /// Certificates of the store's authority, PEM
    #[arg(long, value_name = "FILE", help_heading = "Store", requires = "store")]
    pub tls_ca: Option<PathBuf>,
    /// Certificate to show the store, PEM
    #[arg(long, value_name = "FILE", help_heading = "Store", requires = "store")]
    pub tls_certificate: Option<PathBuf>,
    /// The key of that certificate, PEM
    #[arg(long, value_name = "FILE", help_heading = "Store", requires = "store")]
    pub tls_key: Option<PathBuf>,
    /// User name for the store
    #[arg(long, value_name = "NAME", help_heading = "Store", requires = "store")]
    pub store_user: Option<String>,
    /// File with that user's password on its first line
    #[arg(long, value_name = "FILE", help_heading = "Store", requires = "store")]
    pub store_password_file: Option<PathBuf>,
    /// Which agent is asked.
    #[command(flatten)]
    pub connection: Connection,
}

/// `skybridge store token`.
#[derive(Args, Clone, Debug)]
pub struct TokenArgs {
    /// Only this host may use it [default: any host]
    #[arg(long, value_name = "NAME", value_parser = check::name)]
    pub host: Option<String>,
    /// How long it may be used, 1s to 30d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = life)]
    pub ttl: Duration,
    /// How it is printed.
    #[command(flatten)]
    pub listing: Listing,
}

/// `skybridge store status`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Print JSON with stable field names
    #[arg(long)]
    pub json: bool,
    /// Which store.
    #[command(flatten)]
    pub access: StoreAccess,
}

/// `skybridge store export`.
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    /// File to write, mode 0600 [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// All keys of the store, not only those below `/skybridge/`
    #[arg(long)]
    pub all: bool,
    /// Read all keys from this directory of an embedded store that nobody serves
    #[arg(long, value_name = "DIR", conflicts_with_all = ["store", "socket"])]
    pub data: Option<PathBuf>,
    /// Which store.
    #[command(flatten)]
    pub access: StoreAccess,
}

/// `skybridge store import`.
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// File to read, or - for standard input
    #[arg(value_name = "FILE")]
    pub input: PathBuf,
    /// Replace keys that are there with other values
    #[arg(long)]
    pub overwrite: bool,
    /// Only look, and say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Which store.
    #[command(flatten)]
    pub access: StoreAccess,
}

/// `skybridge store compact`.
#[derive(Args, Clone, Debug)]
pub struct CompactArgs {
    /// Keep this many of the last revisions
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub keep: u64,
    /// Make the files of the members smaller too; each stands still meanwhile
    #[arg(long)]
    pub defragment: bool,
    /// Which store.
    #[command(flatten)]
    pub access: StoreAccess,
}

/// `skybridge join`.
#[derive(Args, Clone, Debug)]
pub struct JoinArgs {
    /// What `skybridge store token` printed on the host that serves the store; - reads it from
    /// standard input, where nobody else on this machine sees it
    #[arg(value_name = "TOKEN")]
    pub token: String,
    /// Name of this host, unique in the cluster [default: the machine's host name]
    #[arg(long, value_name = "NAME", value_parser = check::name)]
    pub name: Option<String>,
    /// Where the agent keeps its state [default: /var/lib/skybridge]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Configuration file [default: /etc/skybridge/skybridge.toml where it exists] [env: SKYBRIDGE_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

fn life(text: &str) -> Result<Duration, Invalid> {
    config::duration(text)
        .ok_or_else(|| Invalid::new("not a length of time", "write a number with s, m, h or d: 1h"))
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        let mut failure = Self::new(error.to_string());
        failure.next_step = error.next_step();
        failure
    }
}

/// Serves the embedded store, or does what is asked of one.
pub(super) fn run(args: StoreArgs, entry: &impl Entry) -> Result<ExitCode, Failure> {
    match args.command {
        None => serve(&args.serve, entry),
        Some(command) => super::block_on(ask(command)),
    }
}

fn serve(args: &ServeArgs, entry: &impl Entry) -> Result<ExitCode, Failure> {
    let tls = args.tls_certificate.clone().zip(args.tls_key.clone());
    let tls = tls.map(|(certificate, key)| StoreTls {
        certificate,
        key,
        client_ca: args.tls_client_ca.clone(),
    });
    if tls.is_none() {
        config::plaintext_listener(args.listen, args.insecure_store).map_err(|invalid| {
            Failure::new("the store is not served like that")
                .cause(invalid.cause)
                .next_step(invalid.next_step)
                .usage()
        })?;
    }
    let data = std::path::absolute(&args.data).map_err(|err| {
        Failure::new(format!("cannot use {}", args.data.display())).cause(err.to_string())
    })?;
    entry.store(StoreOptions { listen: args.listen, data, tls })
}

async fn ask(command: StoreCommand) -> Result<ExitCode, Failure> {
    match command {
        StoreCommand::Token(args) => token(args).await,
        StoreCommand::Status(args) => {
            let members = admin::status(&reach(&args.access).await?).await;
            let all = members.iter().all(|member| member.answers);
            let text = if args.json {
                json(&members)?
            } else {
                render::members(&members, Style::for_output(io::stdout().is_terminal()))
            };
            print(&text)?;
            Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        StoreCommand::Export(args) => {
            let output = args.output.as_deref();
            let exported = match &args.data {
                Some(data) => admin::export_dir(data, output)?,
                None => {
                    let scope = if args.all { Scope::All } else { Scope::Skybridge };
                    admin::export(&reach(&args.access).await?, scope, output).await?
                }
            };
            let place = output
                .map_or_else(|| "standard output".to_owned(), |path| path.display().to_string());
            say(&format!(
                "{} keys of revision {} written to {place}",
                exported.keys, exported.revision
            ));
            Ok(ExitCode::SUCCESS)
        }
        StoreCommand::Import(args) => {
            let options = ImportOptions { overwrite: args.overwrite, dry_run: args.dry_run };
            let done = admin::import(&reach(&args.access).await?, &args.input, options).await?;
            let would = if args.dry_run { "nothing was written; it would have been: " } else { "" };
            print(&format!(
                "{would}{} keys created, {} replaced, {} were there already, {} left out that hosts \
                 publish themselves\n",
                done.created, done.replaced, done.unchanged, done.leased
            ))
        }
        StoreCommand::Compact(args) => {
            let access = reach(&args.access).await?;
            let done = admin::compact(&access, args.keep, args.defragment).await?;
            let already = if done.already { " already" } else { "" };
            let mut text = format!("revisions below {} are forgotten{already}\n", done.revision);
            for endpoint in &done.defragmented {
                text.push_str(&format!("the file of {endpoint} is defragmented\n"));
            }
            print(&text)
        }
    }
}

async fn token(args: TokenArgs) -> Result<ExitCode, Failure> {
    let ttl_ms = u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX);
    let request = MakeToken { host: args.host, ttl_ms };
    let answer = client(&args.listing.connection).make_token(&request).await?;
    if args.listing.json {
        return show(&args.listing, &answer, |_, _| String::new());
    }
    // Only the token goes to standard output, so that a script can take it.
    print(&format!("{}\n", answer.token))?;
    let host = answer
        .host
        .as_ref()
        .map_or_else(|| "one host, whichever is first".to_owned(), |host| format!("host {host}"));
    say(&format!(
        "for {host}, once, within {}; there: skybridge join TOKEN",
        config::duration_text(args.ttl)
    ));
    Ok(ExitCode::SUCCESS)
}

/// The store that the flags name, else the one of this host's agent.
async fn reach(args: &StoreAccess) -> Result<Access, Failure> {
    if args.store.is_empty() {
        let agent = client(&args.connection).store().await.map_err(|error| {
            let mut failure = Failure::from(error);
            let or = failure.next_step.unwrap_or_default();
            failure.next_step = Some(format!("{or}; or name the store with --store"));
            failure
        })?;
        return Ok(Access::from(agent));
    }
    let absolute = |path: &Option<PathBuf>| path.as_deref().map(whole).transpose();
    let flags = Flags {
        store: args.store.clone(),
        store_prefix: args.store_prefix.clone(),
        insecure_store: args.insecure_store,
        tls_ca: absolute(&args.tls_ca)?,
        tls_certificate: absolute(&args.tls_certificate)?,
        tls_key: absolute(&args.tls_key)?,
        store_user: args.store_user.clone(),
        store_password_file: absolute(&args.store_password_file)?,
        ..Flags::default()
    };
    Ok(Access::from(&config::store_of(&flags)?))
}

fn whole(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|err| {
        Failure::new(format!("cannot use {}", path.display())).cause(err.to_string())
    })
}

/// Joins a store.
pub(super) fn join(args: &JoinArgs) -> Result<ExitCode, Failure> {
    let flags = Flags {
        config: args.config.clone(),
        name: args.name.clone(),
        state_dir: args.state_dir.clone(),
        ..Flags::default()
    };
    let effective = config::load(&flags, |name| std::env::var(name).ok(), Purpose::CleanUp)?;
    let (name, state_dir) = (effective.config.name, effective.config.state_dir);
    let token = match args.token.as_str() {
        "-" => first_line(io::stdin().lock())?,
        token => token.to_owned(),
    };
    let joined =
        super::block_on(async { Ok(store::join::join(&token, &name, &state_dir).await?) })?;
    print(&format!(
        "joined the store at {} as {}\nstart the agent: skybridge agent --vtep IP{}\n",
        joined.endpoints.join(", "),
        joined.name,
        match &args.state_dir {
            Some(_) => format!(" --state-dir {}", state_dir.display()),
            None => String::new(),
        }
    ))
}

/// The longest token that is read from standard input, in bytes.
const TOKEN_MAX: u64 = 64 * 1024;

fn first_line(input: impl io::BufRead) -> Result<String, Failure> {
    let mut line = String::new();
    let read = io::Read::take(input, TOKEN_MAX).read_line(&mut line);
    match read {
        Ok(_) if !line.trim().is_empty() => Ok(line.trim().to_owned()),
        Ok(_) => Err(Failure::new("there is no token on standard input")
            .next_step("skybridge store token | ssh h2 'skybridge join -'")),
        Err(err) => {
            Err(Failure::new("the token cannot be read from standard input").cause(err.to_string()))
        }
    }
}

/// A word to the person at the command, beside its output.
fn say(text: &str) {
    // A closed pipe must not turn what was done into a failure.
    let _ = writeln!(io::stderr(), "{text}");
}

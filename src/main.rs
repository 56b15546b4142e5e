//! `skybridge`: arguments in, exit code out.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use membership::embedded::Tls;
use skybridge::cli::{self, DemoOptions, Entry, Failure, StoreOptions};
use skybridge::config::{self, Config, Effective};
use skybridge::{daemon, demo, traffic};

/// The programs behind the commands that do not talk to an agent.
struct Program;

/// `skybridge traffic`, which has arguments of its own.
#[derive(Parser)]
#[command(name = "skybridge traffic")]
struct Traffic {
    #[command(flatten)]
    args: traffic::Args,
}

impl Entry for Program {
    fn agent(&self, effective: Effective, read: config::Read) -> Result<ExitCode, Failure> {
        daemon::run(effective, read).map_err(failure)
    }

    fn cleanup(&self, config: Config) -> Result<ExitCode, Failure> {
        daemon::clean_up(&config, |line| {
            // A closed pipe must not end the clean-up.
            let _ = writeln!(std::io::stdout(), "{line}");
        })
        .map_err(failure)
    }

    fn store(&self, options: StoreOptions) -> Result<ExitCode, Failure> {
        let tls = options.tls.map(|tls| Tls {
            certificate: tls.certificate,
            key: tls.key,
            client_ca: tls.client_ca,
        });
        daemon::store(options.listen, options.data, tls).map_err(failure)
    }

    fn demo(&self, options: DemoOptions) -> Result<ExitCode, Failure> {
        Ok(demo::run(&demo::Options {
            hosts: options.hosts,
            mode: options.mode,
            keep: options.keep,
            color: options.color,
            seconds: options.seconds,
        }))
    }

    fn traffic(&self, args: Vec<OsString>) -> Result<ExitCode, Failure> {
        let name = OsString::from("skybridge traffic");
        let parsed = Traffic::parse_from(std::iter::once(name).chain(args));
        traffic::run(&parsed.args).map_err(|err| Failure::new(err.to_string()))
    }
}

fn failure(failed: daemon::Failure) -> Failure {
    let mut failure = Failure::new(failed.to_string());
    failure.cause = failed.cause;
    failure.next_step = failed.next_step;
    failure
}

fn main() -> ExitCode {
    cli::run(std::env::args_os(), &Program)
}

//! Logs: structured events on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// A request to the kernel that is given up, as at a stop, is warned of there, once for each part of the
/// answer that nobody waits for any more.
const GIVEN_UP: &str = "netlink_proto::connection";

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// Installs the logger for this process; a second call changes nothing. `level` is a filter such as
/// `info` or `skybridge=debug,membership=trace`.
///
/// # Errors
/// When `level` is no filter.
pub fn init(level: &str, format: Format) -> Result<(), String> {
    let filter = filter(level).map_err(|err| {
        format!("the log level `{level}` is no filter ({err}): write error, warn, info or debug")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let _ = match format {
        Format::Json => builder.json().try_init(),
        Format::Text => builder.try_init(),
    };
    Ok(())
}

fn filter(level: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::try_new(level)?;
    // Whoever names it gets it.
    Ok(if level.contains("netlink_proto") {
        filter
    } else {
        filter.add_directive(format!("{GIVEN_UP}=error").parse()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_no_warning_unless_it_is_asked_for() {
        let directives = |level: &str| filter(level).unwrap().to_string();
        assert!(directives("info").contains("netlink_proto::connection=error"));
        assert_eq!(directives("netlink_proto=debug"), "netlink_proto=debug");
        assert!(filter("skybridge=loud").is_err());
    }
}

//! `skybridge stats --watch`.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use super::args::StatsArgs;
use super::table::Style;
use super::{Failure, client, render};

/// Looks again and again until it is interrupted, the reader goes away, or the agent does.
pub(super) async fn watch(args: &StatsArgs) -> Result<ExitCode, Failure> {
    let client = client(&args.listing.connection);
    let terminal = io::stdout().is_terminal();
    let style = Style::for_output(terminal);
    let mut before = client.stats().await?;
    loop {
        tokio::time::sleep(Duration::from_secs(args.interval)).await;
        let now = client.stats().await?;
        let text = if args.listing.json {
            let line = serde_json::to_string(&now)
                .map_err(|err| Failure::new("cannot write the answer").cause(err.to_string()))?;
            format!("{line}\n")
        } else {
            let rates = render::rates(&before, &now, args.all, style);
            // On a terminal each look replaces the last one.
            if terminal { format!("\x1b[H\x1b[2J{rates}") } else { format!("{rates}\n") }
        };
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            Err(err) => {
                return Err(Failure::new("cannot write the output").cause(err.to_string()));
            }
        }
        before = now;
    }
}

//! Values as text: durations, endpoints, likeness of words.

use std::net::IpAddr;
use std::time::Duration;

/// A number with a unit: `500ms`, `10s`, `5m`, `24h`, `7d`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(ms).map(Duration::from_millis)
}

/// The shortest text that [`duration`] reads back.
pub(crate) fn duration_text(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit, per) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if ms != 0 && ms.is_multiple_of(per) {
            return format!("{}{unit}", ms / per);
        }
    }
    if ms == 0 { "0s".to_owned() } else { format!("{ms}ms") }
}

/// An endpoint of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
}

/// Why a text is no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndpointError {
    Host,
    Path,
    Port,
    Scheme,
}

impl Endpoint {
    pub(super) fn parse(text: &str, default_port: u16) -> Result<Self, EndpointError> {
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err(EndpointError::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) {
            return Err(EndpointError::Path);
        }
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(EndpointError::Host)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| EndpointError::Host)?;
                (host, port.strip_prefix(':').or_else(|| port.is_empty().then_some("")))
            }
            None => {
                let (host, port) = rest.split_once(':').unwrap_or((rest, ""));
                (host, Some(port))
            }
        };
        let port = match port.ok_or(EndpointError::Port)? {
            "" if rest.ends_with(':') => return Err(EndpointError::Port),
            "" => default_port,
            port => port.parse().map_err(|_| EndpointError::Port)?,
        };
        let named = !host.is_empty()
            && host.len() <= 253
            && host.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c));
        match (named, port) {
            (false, _) => Err(EndpointError::Host),
            (true, 0) => Err(EndpointError::Port),
            (true, _) => Ok(Self { tls, host: host.to_owned(), port }),
        }
    }

    /// Whether what is sent to it stays on this machine.
    pub(super) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    pub(super) fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            format!("{scheme}://[{}]:{}", self.host, self.port)
        } else {
            format!("{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// How many letters must be put in, taken out or replaced to make one word of the other
/// (Levenshtein). Long words count as far apart.
pub(super) fn distance(a: &str, b: &str) -> usize {
    const LONG: usize = 64;
    if a.len() > LONG || b.len() > LONG {
        return LONG;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        let mut left = i + 1;
        for ((to, diagonal), above) in b.iter().zip(&row).zip(row.iter().skip(1)) {
            let replaced = diagonal + usize::from(from != *to);
            left = replaced.min(above + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(LONG)
}

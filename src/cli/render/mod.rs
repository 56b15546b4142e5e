//! What people see: pure functions from the API's types to text. Each takes the answer as it came
//! and sorts it itself; [`Sorted`] does the same for JSON.

mod garbage;
mod kernel;
mod listing;
mod network;
mod stats;
mod status;
mod store;

use std::net::{IpAddr, SocketAddr};

pub use garbage::garbage;
pub use kernel::{exported, kernel_links};
pub use listing::{attachment, detached, drops, endpoints, fdb, hosts, neighbors, routes};
pub use network::{network, networks, vtep, vteps};
pub use stats::{rates, stats};
pub use status::status;
pub use store::members;

use super::table::{Cell, Tone};
use crate::control::types::{
    Drops, Endpoint, FdbEntry, Garbage, Host, HostVtep, NeighborEntry, Network, PlaceKind,
    RouteEntry, SourceKind, StaticVtep,
};

/// Listings in a stable order.
pub trait Sorted {
    /// Puts the rows in order.
    fn sort_rows(&mut self);
}

impl Sorted for Vec<Network> {
    fn sort_rows(&mut self) {
        self.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    }
}

impl Sorted for Vec<Host> {
    fn sort_rows(&mut self) {
        self.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    }
}

impl Sorted for Vec<Endpoint> {
    fn sort_rows(&mut self) {
        self.sort_by(|a, b| {
            (&a.network, &a.host, &a.ips, &a.id).cmp(&(&b.network, &b.host, &b.ips, &b.id))
        });
    }
}

impl Sorted for Vec<FdbEntry> {
    fn sort_rows(&mut self) {
        self.sort_by(|a, b| (&a.network, a.mac).cmp(&(&b.network, b.mac)));
    }
}

impl Sorted for Vec<NeighborEntry> {
    fn sort_rows(&mut self) {
        self.sort_by(|a, b| (&a.network, a.ip).cmp(&(&b.network, b.ip)));
    }
}

impl Sorted for Vec<RouteEntry> {
    fn sort_rows(&mut self) {
        self.sort_by(|a, b| (&a.network, a.prefix).cmp(&(&b.network, b.prefix)));
    }
}

impl Sorted for Vec<Garbage> {
    fn sort_rows(&mut self) {
        self.sort_by(|a, b| (&a.kind, &a.key).cmp(&(&b.kind, &b.key)));
    }
}

impl Sorted for Vec<StaticVtep> {
    fn sort_rows(&mut self) {
        self.sort_by(|a, b| (&a.network, a.address).cmp(&(&b.network, b.address)));
    }
}

impl Sorted for Vec<Drops> {
    /// Most frequent first.
    fn sort_rows(&mut self) {
        self.sort_by(|a, b| {
            let rest = |drops: &Drops| {
                let Drops { reason, network, endpoint, .. } = drops.clone();
                (drops.direction, reason, network, endpoint)
            };
            b.count.cmp(&a.count).then_with(|| rest(a).cmp(&rest(b)))
        });
    }
}

fn sorted<T: Clone>(rows: &[T]) -> Vec<T>
where
    Vec<T>: Sorted,
{
    let mut rows = rows.to_vec();
    rows.sort_rows();
    rows
}

fn place(place: PlaceKind, vtep: Option<IpAddr>, host: Option<&str>) -> String {
    match (place, vtep, host) {
        (PlaceKind::Local, ..) => "local".to_owned(),
        (_, Some(vtep), Some(host)) => format!("{vtep} ({host})"),
        (_, Some(vtep), None) => vtep.to_string(),
        (_, None, Some(host)) => host.to_owned(),
        (_, None, None) => "-".to_owned(),
    }
}

fn source(source: SourceKind, revision: Option<i64>) -> Cell {
    match (source, revision) {
        (SourceKind::Learned, _) => Cell::toned("learned", Tone::Warning),
        (SourceKind::Imported, _) => "imported".into(),
        (SourceKind::Static, _) => "static".into(),
        (SourceKind::Store, Some(revision)) => format!("store {revision}").into(),
        (SourceKind::Store, None) => "store".into(),
        (SourceKind::Unknown, _) => "unknown".into(),
    }
}

fn socket_addresses(vteps: &[HostVtep]) -> impl Iterator<Item = SocketAddr> {
    vteps.iter().map(|vtep| SocketAddr::new(vtep.address, vtep.port))
}

fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned()
}

fn plural(count: u64, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

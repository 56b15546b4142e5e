//! Networks: create, find, change, remove. Each operation is one transaction.

mod check;
mod domain;
mod import;
mod vtep;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use encap::Vni;
use etcd_client::{DeleteOptions, TxnOp};
use fdb::Revision;
use ipnet::IpNet;
use tokio::time::sleep;
use tracing::{Instrument, info, info_span};

use crate::gateway;
use crate::ipam::ATTEMPTS;
use crate::key::{Key, NetworkId, NetworkName, Range};
use crate::record::{
    AddressRange, DockerRecord, EndpointRecord, Mode, NameRecord, NetworkOptions, NetworkRecord,
    VniRecord,
};
use crate::store::{self, Found, Store, conflict_pause};

pub use check::check;
pub(crate) use domain::enter;
pub use domain::{FIRST_UDP_PORT, UDP_PORT_V4, UDP_PORT_V6, overlap, udp_ports};
pub use import::{IMPORTED_MAX, Imported, import, is_imported};
pub use vtep::{vtep_add, vtep_remove};

/// The first VNI that is given out by itself; lower ones are for those who ask.
pub const FIRST_VNI: u32 = 4096;
/// Least inner MTU with IPv4 subnets only: what every IPv4 host must take (RFC 1122).
pub const MTU_MIN_V4: u16 = 576;
/// Least inner MTU with an IPv6 subnet (RFC 8200 section 5).
pub const MTU_MIN_V6: u16 = 1280;
/// Most subnets of one network.
pub const SUBNETS_MAX: usize = 16;

/// Most excluded ranges of one network.
pub const EXCLUDE_MAX: usize = 64;

/// Why a network cannot be created, changed or removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Two networks that the wire could not tell apart.
    #[error(
        "subnet {subnet} overlaps with {theirs} of network {other}, and nothing on the wire would \
         tell the two apart: choose another subnet, or `--mode ipudp`, which gives a network that \
         overlaps UDP ports of its own"
    )]
    Domain {
        /// The subnet.
        subnet: IpNet,
        /// The other network's name.
        other: NetworkName,
        /// Its subnet.
        theirs: IpNet,
    },
    /// A range of excluded addresses that no subnet has.
    #[error("addresses {range} cannot be excluded: {cause}")]
    Exclude {
        /// The range.
        range: AddressRange,
        /// Why.
        cause: String,
    },
    /// Something that other records depend on.
    #[error("{0} of a network cannot be changed: create another network")]
    Fixed(&'static str),
    /// A gateway that is no address of a subnet, or the second of one.
    #[error("gateway {gateway} cannot be used: {cause}")]
    Gateway {
        /// The gateway.
        gateway: IpAddr,
        /// Why.
        cause: &'static str,
    },
    /// A way out without a gateway to go through.
    #[error(
        "{0} needs a gateway of the network's own: create the network with `--gateway IP`, an \
         address of its subnet"
    )]
    NoGateway(&'static str),
    /// An option that means nothing for networks of this mode.
    #[error("{option} cannot be used in a network of mode {mode}: {cause}; leave it out")]
    ModeOption {
        /// The option.
        option: &'static str,
        /// The mode.
        mode: Mode,
        /// Why.
        cause: &'static str,
    },
    /// Every pair of UDP ports is held.
    #[error("no pair of UDP ports is left: choose a subnet that no other network overlaps")]
    NoUdpPort,
    /// A UDP port that a vxlan network cannot have for its own.
    #[error("UDP port {port} cannot be used: {cause}; choose another one")]
    OwnUdpPort {
        /// The port.
        port: u16,
        /// Why not.
        cause: String,
    },
    /// Two UDP ports that the network cannot have.
    #[error("UDP ports {port} and {next} cannot be used: {cause}; choose another port, or leave \
             udp_port out", next = port.saturating_add(1))]
    UdpPort {
        /// The first port.
        port: u16,
        /// Why.
        cause: String,
    },
    /// Both would need routes in the hosts, which have one per prefix.
    #[error(
        "subnet {subnet} overlaps with {theirs} of network {other}, and both networks would have \
         routes in their hosts: choose another subnet, or give one of them neither nat_outgoing \
         nor host_access"
    )]
    Overlap {
        /// The subnet.
        subnet: IpNet,
        /// The other network's name.
        other: NetworkName,
        /// Its subnet.
        theirs: IpNet,
    },
    /// Another network has this id.
    #[error("network id {0} is in use already")]
    IdTaken(NetworkId),
    /// Endpoints are attached.
    #[error("network {name} has {count} endpoints ({some}): detach them first")]
    InUse {
        /// The network's name.
        name: NetworkName,
        /// How many.
        count: usize,
        /// Some of them.
        some: String,
    },
    /// A Docker has it.
    #[error(
        "network {name} is a network of Docker on {hosts}: `docker network rm` it there first, or \
         use --force where Docker does not know it any more"
    )]
    InDocker {
        /// The network's name.
        name: NetworkName,
        /// The hosts.
        hosts: String,
    },
    /// An MTU below what the families need.
    #[error("mtu {mtu} is too small: {family} needs at least {least}")]
    Mtu {
        /// The MTU.
        mtu: u16,
        /// The family.
        family: &'static str,
        /// The least.
        least: u16,
    },
    /// Another network has this name.
    #[error("network name {name} is in use already (network {id}): choose another")]
    NameTaken {
        /// The name.
        name: NetworkName,
        /// Who has it.
        id: NetworkId,
    },
    /// No network of this name or id.
    #[error("network {0} does not exist: `skybridge network ls` lists those that do")]
    NotFound(String),
    /// Every VNI is held.
    #[error("no VNI is left: all from {FIRST_VNI} to {max} are held", max = Vni::MAX)]
    NoVni,
    /// A subnet that cannot be used.
    #[error("subnet {subnet} cannot be used: {cause}")]
    Subnet {
        /// The subnet.
        subnet: IpNet,
        /// Why, and what to write instead.
        cause: String,
    },
    /// Another network holds this VNI.
    #[error("VNI {vni} is held by network {holder}: choose another, or leave it out")]
    VniTaken {
        /// The VNI.
        vni: Vni,
        /// Name of the network, or its id.
        holder: String,
    },
    /// The number is no VNI for a network.
    #[error("VNI {0} cannot be used: write a number from 1 to {max}", max = Vni::MAX)]
    VniZero(Vni),
    /// More than one record can hold.
    #[error(
        "network {name} would have {count} imported entries, and the most is {IMPORTED_MAX}: import \
         fewer devices into it"
    )]
    TooManyImported {
        /// The network's name.
        name: NetworkName,
        /// How many.
        count: usize,
    },
    /// A host of this store advertises the address.
    #[error("VTEP {address} is advertised by host {host}: hosts need no static VTEP")]
    VtepIsHost {
        /// The address.
        address: IpAddr,
        /// The host.
        host: String,
    },
    /// The address can be nobody's VTEP, or a MAC nobody's address.
    #[error("static VTEP {address} cannot be used: {cause}")]
    Vtep {
        /// The address.
        address: IpAddr,
        /// Why.
        cause: String,
    },
    /// The network has no such static VTEP.
    #[error("network {name} has no static VTEP {address}")]
    VtepNotFound {
        /// The network's name.
        name: NetworkName,
        /// The address.
        address: IpAddr,
    },
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// What a network shall be.
#[derive(Clone, Debug)]
pub struct NetworkSpec {
    /// Its id; `None` makes one.
    pub id: Option<NetworkId>,
    /// Its name.
    pub name: NetworkName,
    /// How it is carried.
    pub mode: Mode,
    /// Its VNI; `None` gives the lowest free one from [`FIRST_VNI`].
    pub vni: Option<Vni>,
    /// The first UDP port of an ipudp network; `None` gives it ports of its own only where it
    /// overlaps with another.
    pub udp_port: Option<u16>,
    /// Its subnets.
    pub subnets: Vec<IpNet>,
    /// Its inner MTU; `None` is the largest that every host can carry.
    pub mtu: Option<u16>,
    /// Its gateways, at most one per subnet; empty for none.
    pub gateways: Vec<IpAddr>,
    /// Addresses that are never given out.
    pub exclude: Vec<AddressRange>,
    /// Its options.
    pub options: NetworkOptions,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl NetworkSpec {
    /// A vxlan network with these subnets and default options.
    #[must_use]
    pub fn new(name: NetworkName, subnets: Vec<IpNet>) -> Self {
        Self {
            id: None,
            name,
            mode: Mode::Vxlan,
            vni: None,
            udp_port: None,
            subnets,
            mtu: None,
            gateways: Vec::new(),
            exclude: Vec::new(),
            options: NetworkOptions::default(),
            labels: BTreeMap::new(),
        }
    }

    fn record(&self, id: NetworkId, vni: Vni) -> NetworkRecord {
        let mut record = NetworkRecord::new(id, self.name.clone(), vni);
        record.mode = self.mode;
        record.udp_port = self.udp_port;
        record.subnets.clone_from(&self.subnets);
        record.mtu = self.mtu;
        record.gateways.clone_from(&self.gateways);
        record.exclude.clone_from(&self.exclude);
        record.options = self.options.clone();
        record.labels = self.labels.clone();
        record
    }
}

/// Creates a network: name, VNI and record in one transaction.
///
/// # Errors
///
/// What is wrong with `spec`, or who holds its name, id or VNI.
pub async fn create(store: &Store, spec: &NetworkSpec) -> Result<NetworkRecord, Error> {
    let id = spec.id.clone().unwrap_or_else(NetworkId::random);
    // Checked with any VNI, since the number is the last thing to be known.
    let mut record = spec.record(id, spec.vni.unwrap_or(Vni::MAX));
    check(&record)?;
    check_overlap(store, &record).await?;
    let span = info_span!("network", network = %spec.name);
    async {
        let _turn = store.turn().await;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                sleep(conflict_pause(attempt)).await;
            }
            if spec.vni.is_none() {
                record.vni = free_vni(store, attempt).await?;
            }
            record.udp_port = spec.udp_port;
            let turn = enter(store, &mut record, true).await?;
            if let Some(record) = try_create(store, spec, &record, turn.as_ref()).await? {
                info!(
                    vni = record.vni.get(), network = %record.id, mode = %record.mode,
                    "network created"
                );
                return Ok(record);
            }
        }
        Err(store::Error::Busy { what: "creation of a network", attempts: ATTEMPTS }.into())
    }
    .instrument(span)
    .await
}

/// One attempt; `None` when another network took the VNI that was chosen here.
async fn try_create(
    store: &Store,
    spec: &NetworkSpec,
    record: &NetworkRecord,
    turn: Option<&domain::Turn>,
) -> Result<Option<NetworkRecord>, Error> {
    let (id, vni) = (&record.id, record.vni);
    let name_key = Key::Name(spec.name.clone());
    let id_key = Key::Network(id.clone());
    let vni_key = Key::Vni(vni);
    let mut when = vec![store.absent(&name_key), store.absent(&id_key), store.absent(&vni_key)];
    let mut then = vec![
        store.put(&name_key, &NameRecord::new(id.clone()), 0)?,
        store.put(&id_key, record, 0)?,
        store.put(&vni_key, &VniRecord::new(id.clone()), 0)?,
    ];
    if let Some(turn) = turn {
        when.push(turn.when(store));
        then.push(turn.then(store, record)?);
    }
    let or_else =
        vec![store.read_key(&name_key), store.read_key(&id_key), store.read_key(&vni_key)];
    let outcome = store.txn(when, then, or_else).await?;
    if outcome.succeeded {
        return Ok(Some(record.clone()));
    }
    let [names, networks, vnis] = outcome.reads.as_slice() else { return Ok(None) };
    if let Some(entry) = networks.first() {
        let present: Found<NetworkRecord> = Store::decode(&id_key, entry)?;
        // The answer to our own earlier attempt was lost, its effect was not.
        // With another VNI or other ports perhaps: those were chosen anew since.
        let udp_port = record.udp_port;
        let ours = NetworkRecord { vni, udp_port, ..present.record.clone() } == *record;
        if spec.id.is_none() || ours {
            return Ok(Some(present.record));
        }
        return Err(Error::IdTaken(id.clone()));
    }
    if let Some(entry) = names.first() {
        let holder: Found<NameRecord> = Store::decode(&name_key, entry)?;
        return Err(Error::NameTaken { name: spec.name.clone(), id: holder.record.network });
    }
    match vnis.first() {
        Some(entry) if spec.vni.is_some() => {
            let holder: Found<VniRecord> = Store::decode(&vni_key, entry)?;
            let id = holder.record.network;
            let named = store.get::<NetworkRecord>(&Key::Network(id.clone())).await;
            let holder = named
                .ok()
                .flatten()
                .map_or_else(|| id.to_string(), |found| found.record.name.to_string());
            Err(Error::VniTaken { vni, holder })
        }
        _ => Ok(None),
    }
}

/// The lowest free VNI, or after a lost race one of the next few.
async fn free_vni(store: &Store, attempt: u32) -> Result<Vni, Error> {
    let (_, entries) = store.list(Range::Vnis).await?;
    let taken: BTreeSet<u32> = entries
        .iter()
        .filter_map(|entry| match store.keys().parse(&entry.key) {
            Ok(Key::Vni(vni)) => Some(vni.get()),
            _ => None,
        })
        .collect();
    let few = 1_usize << attempt.min(5);
    let free: Vec<Vni> = (FIRST_VNI..=Vni::MAX.get())
        .filter(|number| !taken.contains(number))
        .filter_map(Vni::new)
        .take(few)
        .collect();
    if free.is_empty() {
        return Err(Error::NoVni);
    }
    free.get(rand::random_range(0..free.len())).copied().ok_or(Error::NoVni)
}

/// The network of this name, or else of this id.
///
/// # Errors
///
/// [`Error::NotFound`], or why the store did not answer.
pub async fn get(store: &Store, name_or_id: &str) -> Result<Found<NetworkRecord>, Error> {
    let not_found = || Error::NotFound(name_or_id.to_owned());
    if let Ok(name) = NetworkName::new(name_or_id)
        && let Some(found) = store.get::<NameRecord>(&Key::Name(name)).await?
    {
        let key = Key::Network(found.record.network);
        return store.get(&key).await?.ok_or_else(not_found);
    }
    let id = NetworkId::new(name_or_id).map_err(|_| not_found())?;
    store.get(&Key::Network(id)).await?.ok_or_else(not_found)
}

/// All networks whose records can be read, by id.
///
/// # Errors
///
/// Why the store did not answer.
pub async fn list(store: &Store) -> Result<Vec<Found<NetworkRecord>>, Error> {
    let records = store.records(Range::Networks).await?;
    Ok(records.into_iter().map(|(_, found)| found).collect())
}

/// Changes a network. `change` may be called several times, each time on the newest record. Id,
/// name, mode, VNI and UDP port cannot change, subnets can only be added.
///
/// # Errors
///
/// What `change` returns, [`Error::Fixed`], what [`check()`] finds, or why the store did not do it.
pub async fn update(
    store: &Store,
    name_or_id: &str,
    change: impl FnMut(&mut NetworkRecord) -> Result<(), Error>,
) -> Result<NetworkRecord, Error> {
    update_at(store, name_or_id, change).await.map(|(record, _)| record)
}

/// As [`update`], with the revision of the store that has the change.
async fn update_at(
    store: &Store,
    name_or_id: &str,
    mut change: impl FnMut(&mut NetworkRecord) -> Result<(), Error>,
) -> Result<(NetworkRecord, Revision), Error> {
    let mut tried = None;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(conflict_pause(attempt)).await;
        }
        let found = get(store, name_or_id).await?;
        let before = found.record;
        // The answer to our own earlier attempt was lost, its effect was not.
        if tried.as_ref() == Some(&before) {
            return Ok((before, Revision(found.mod_revision)));
        }
        let mut record = before.clone();
        change(&mut record)?;
        check_fixed(&before, &record)?;
        check(&record)?;
        if record == before {
            return Ok((record, Revision(found.mod_revision)));
        }
        if gateway::is_routed(&record) && !gateway::is_routed(&before)
            || record.subnets != before.subnets
        {
            check_overlap(store, &record).await?;
        }
        let key = Key::Network(before.id.clone());
        let mut when = vec![store.unchanged(&key, found.mod_revision)];
        let mut then = vec![store.put(&key, &record, 0)?];
        if record.subnets != before.subnets
            && let Some(turn) = enter(store, &mut record, false).await?
        {
            when.push(turn.when(store));
            then.push(turn.then(store, &record)?);
        }
        let outcome = store.txn(when, then, Vec::new()).await?;
        if outcome.succeeded {
            return Ok((record, Revision(outcome.revision)));
        }
        tried = Some(record);
    }
    Err(store::Error::Busy { what: "change of a network", attempts: ATTEMPTS }.into())
}

/// Refuses a network with routes in the hosts whose subnets another such network has. Two that are
/// made in the same moment may both pass; the hosts then give the routes to one of them.
async fn check_overlap(store: &Store, record: &NetworkRecord) -> Result<(), Error> {
    if !gateway::is_routed(record) {
        return Ok(());
    }
    let others = list(store).await?;
    match gateway::overlap(record, others.iter().map(|found| &found.record)) {
        None => Ok(()),
        Some((subnet, other, theirs)) => {
            Err(Error::Overlap { subnet, other: other.name.clone(), theirs })
        }
    }
}

fn check_fixed(before: &NetworkRecord, after: &NetworkRecord) -> Result<(), Error> {
    let fixed = [
        (before.id == after.id, "the id"),
        (before.name == after.name, "the name"),
        (before.mode == after.mode, "the mode"),
        (before.vni == after.vni, "the VNI"),
        (before.udp_port == after.udp_port, "the UDP port"),
        (before.subnets.iter().all(|s| after.subnets.contains(s)), "a subnet"),
    ];
    match fixed.iter().find(|(same, _)| !same) {
        Some((_, what)) => Err(Error::Fixed(what)),
        None => Ok(()),
    }
}

/// Removes a network with its name, VNI and blocks. With `force` its endpoints' records too, whose
/// agents then detach them.
///
/// # Errors
///
/// [`Error::NotFound`], [`Error::InUse`], or why the store did not do it.
pub async fn remove(store: &Store, name_or_id: &str, force: bool) -> Result<NetworkRecord, Error> {
    let mut seen = None;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(conflict_pause(attempt)).await;
        }
        let found = match get(store, name_or_id).await {
            // Gone after we tried: that was us.
            Err(Error::NotFound(name)) => return seen.ok_or(Error::NotFound(name)),
            found => found?,
        };
        let record = found.record;
        let id_key = Key::Network(record.id.clone());
        let mut when = vec![store.unchanged(&id_key, found.mod_revision)];
        let all = |range| {
            TxnOp::delete(store.keys().range(range), Some(DeleteOptions::new().with_prefix()))
        };
        let mut then = vec![
            store.delete(&Key::Name(record.name.clone())),
            store.delete(&id_key),
            store.delete(&Key::Vni(record.vni)),
            all(Range::Ipam(&record.id)),
        ];
        if force {
            then.push(all(Range::Endpoints(&record.id)));
            then.push(all(Range::Docker(&record.id)));
        } else {
            when.push(store.empty(Range::Docker(&record.id)));
            when.push(store.empty(Range::Endpoints(&record.id)));
        }
        if store.txn(when, then, Vec::new()).await?.succeeded {
            info!(network = %record.id, vni = record.vni.get(), "network removed");
            return Ok(record);
        }
        let endpoints: Vec<(Key, Found<EndpointRecord>)> =
            store.records(Range::Endpoints(&record.id)).await?;
        if !force && !endpoints.is_empty() {
            let some: Vec<String> = endpoints
                .iter()
                .take(3)
                .map(|(_, found)| {
                    let endpoint = &found.record;
                    let name = endpoint.name.as_deref().unwrap_or(endpoint.id.as_str());
                    format!("{name} on {}", endpoint.host)
                })
                .collect();
            let more = if endpoints.len() > some.len() { ", ..." } else { "" };
            return Err(Error::InUse {
                name: record.name,
                count: endpoints.len(),
                some: some.join(", ") + more,
            });
        }
        let dockers = store.records::<DockerRecord>(Range::Docker(&record.id)).await?;
        if !force && !dockers.is_empty() {
            let hosts = dockers.iter().filter_map(|(key, _)| match key {
                Key::Docker(_, host, _) => Some(host.to_string()),
                _ => None,
            });
            let hosts = hosts.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ");
            return Err(Error::InDocker { name: record.name, hosts });
        }
        seen = Some(record);
    }
    Err(store::Error::Busy { what: "removal of a network", attempts: ATTEMPTS }.into())
}

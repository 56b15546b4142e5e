//! The task of one device: finds it, reads it, and makes things so, again and again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use membership::network::{IMPORTED_MAX, Imported};
use membership::record::NetworkRecord;
use tokio::time::Instant;

use super::{Link, Read, export, import};
use crate::agent::{Agent, link_error};
use crate::control::types::{Error, ExportedEntry, KernelDirection, KernelState};
use crate::link::vxlan::{self, Behind, End, Known, Monitor};
use crate::link::{NetNs, NetNsRef, Netlink};

/// How long changes are gathered.
const TOGETHER: Duration = Duration::from_millis(50);
/// How often a device is looked at without being told of a change.
const LOOK: Duration = Duration::from_secs(5);
/// How often one that is not there is looked for, and one whose ports have unknown ends again.
const SOON: Duration = Duration::from_millis(500);
/// How often in a row ports with unknown ends are looked at soon.
const SOON_MAX: u32 = 20;
/// Most namespaces that a pattern is compared with.
const FILES_MAX: usize = 4096;

/// Why it does not go on for now.
pub(super) struct Trouble {
    state: KernelState,
    pub(super) reason: String,
}

impl Trouble {
    fn waiting(reason: impl Into<String>) -> Self {
        Self { state: KernelState::Waiting, reason: reason.into() }
    }

    fn failed(reason: impl Into<String>) -> Self {
        Self { state: KernelState::Failed, reason: reason.into() }
    }
}

impl From<crate::link::Error> for Trouble {
    fn from(err: crate::link::Error) -> Self {
        match err {
            // Before a sandbox is there, and after it, its file is an empty one.
            crate::link::Error::NamespaceGone { .. } | crate::link::Error::NotANamespace { .. } => {
                Self::waiting(err.to_string())
            }
            _ => Self::failed(err.to_string()),
        }
    }
}

/// What a turn has to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// The records only.
    Records,
    /// What the device knows, and who its ports lead to where that is not known yet.
    Device,
    /// Who is on its side as well.
    All,
}

/// The device, found.
struct Found {
    path: PathBuf,
    netlink: Netlink,
    monitor: Monitor,
    /// Whether the device sends over IPv6, where that can be told.
    ipv6: Option<bool>,
    /// The other ends of its bridge's ports that have been looked for, and what was found.
    ends: BTreeSet<End>,
    local: BTreeSet<Behind>,
    /// What it was last told.
    told: Option<Vec<ExportedEntry>>,
}

/// Follows a device until it is stopped, or its network is gone.
pub(super) async fn follow(agent: &Agent, link: &Link) {
    let _running = link.running.lock().await;
    let mut stopped = link.stop.subscribe();
    let mut reached = agent.tables.reached();
    let mut found: Option<Found> = None;
    let mut soon = 0;
    let mut look = Look::All;
    // Only a look at everything moves this: changes of the store or of the device, however many there
    // are, do not put it off.
    let mut due = Instant::now();
    while !*stopped.borrow() {
        let result = match is_over(agent, link) {
            true => match end(agent, link).await {
                Ok(()) => return,
                Err(trouble) => Err(trouble),
            },
            false => turn(agent, link, &mut found, look).await,
        };
        match result {
            Ok(()) => link.looked(agent, KernelState::Following, None),
            Err(trouble) => {
                found = None;
                link.looked(agent, trouble.state, Some(trouble.reason));
            }
        }
        let now = Instant::now();
        if look == Look::All {
            due = now + LOOK;
        }
        if let Some(at) = found.as_ref().filter(|_| look != Look::Records) {
            let unknown = at.local.len() < at.ends.len();
            soon = if unknown { (soon + 1).min(SOON_MAX) } else { 0 };
            if unknown && soon < SOON_MAX {
                due = due.min(now + SOON);
            }
        }
        if found.is_none() {
            due = now + SOON;
        }
        look = tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return,
            () = told(found.as_ref()) => Look::Device,
            Ok(()) = reached.changed() => Look::Records,
            () = tokio::time::sleep_until(due) => Look::All,
        };
        tokio::time::sleep(TOGETHER).await;
        if found.is_none() || Instant::now() >= due {
            look = Look::All;
        }
    }
}

/// Whether the network was removed.
fn is_over(agent: &Agent, link: &Link) -> bool {
    agent.tables.is_complete() && agent.known_network(&link.note.network).is_none()
}

/// The network was removed: what was entered for it goes, and then the note.
async fn end(agent: &Agent, link: &Link) -> Result<(), Trouble> {
    if link.note.direction == KernelDirection::Export {
        let _is_there = take_back(link).await?;
    }
    let forgotten = agent.kernel.change(|links| {
        links.remove(&link.note);
    });
    forgotten.map_err(|err| Trouble::failed(err.to_string()))?;
    link.looked(agent, KernelState::Stopped, None);
    let network = &link.note.name;
    tracing::info!(%network, "the network is gone, and its device is followed no more");
    Ok(())
}

async fn told(found: Option<&Found>) {
    match found {
        Some(found) => found.monitor.changed().await,
        None => std::future::pending().await,
    }
}

/// One look at a device and what follows from it.
async fn turn(
    agent: &Agent,
    link: &Link,
    found: &mut Option<Found>,
    look: Look,
) -> Result<(), Trouble> {
    if !agent.tables.is_complete() {
        return Err(Trouble::waiting("the store's records are not known yet"));
    }
    let gone = found.as_ref().is_some_and(|at| look != Look::Records && !is_still(at));
    if gone || found.is_none() {
        *found = None;
        match find(link).await {
            Ok(fresh) => *found = Some(fresh),
            Err(trouble) => {
                if trouble.state == KernelState::Waiting {
                    left(agent, link).await?;
                }
                return Err(trouble);
            }
        }
    }
    let Some(at) = found.as_mut() else { return Err(Trouble::waiting("no device")) };
    let Some(record) = agent.known_network(&link.note.network) else {
        // Since this turn began; the next one ends it.
        return Err(Trouble::waiting("the network is gone"));
    };
    let is_export = link.note.direction == KernelDirection::Export;
    if look == Look::Records {
        if !is_export {
            return push(agent, link).await;
        }
        if at.told.as_ref() == Some(&export::entries(agent, &record, at.ipv6)) {
            return Ok(());
        }
    }
    let known = match vxlan::read(&at.netlink, &link.note.dev).await? {
        Some(known) => known,
        None => {
            left(agent, link).await?;
            return Err(no_device(link, &at.path));
        }
    };
    fits(agent, &record, &known)?;
    at.ipv6 = known.device.ipv6;
    if is_export {
        let entries = export::entries(agent, &record, at.ipv6);
        let applied = export::apply(&at.netlink, &known, &entries).await;
        link.count(applied.entered, applied.conflicts);
        // What was refused is tried again at the next look.
        at.told = applied.refused.is_none().then_some(entries);
        return Ok(());
    }
    let ends = vxlan::ends(&at.netlink, &known.device).await?;
    if look == Look::All || ends != at.ends || at.local.len() < ends.len() {
        at.local = match import::folder(&at.path) {
            Some(folder) => vxlan::behind(&at.netlink, &ends, folder, &record.subnets).await,
            None => BTreeSet::new(),
        };
        at.ends = ends;
    }
    let own = own_vtep(agent, link, at.ipv6);
    if own.is_none() && !at.local.is_empty() {
        return Err(Trouble::failed(
            "this host has no VTEP of the device's family: give the device's own with --vtep",
        ));
    }
    {
        let mut read = link.read();
        let before = read.as_ref().map(|read| read.entries.as_slice());
        let fresh = import::entries(&known, &at.local, own, before);
        if fresh.len() > IMPORTED_MAX {
            return Err(Trouble::failed(format!(
                "the device has {} entries, and the most is {IMPORTED_MAX}",
                fresh.len()
            )));
        }
        let entries = still_fresh(before, fresh);
        *read = Some(Read { entries, ..Read::default() });
    }
    push(agent, link).await
}

/// The device's own VTEP.
fn own_vtep(agent: &Agent, link: &Link, ipv6: Option<bool>) -> Option<IpAddr> {
    let mut vteps = agent.config.vteps.iter().map(|vtep| vtep.advertise);
    link.note.vtep.or_else(|| vteps.find(|own| ipv6.is_none_or(|ipv6| own.is_ipv6() == ipv6)))
}

/// News that was not told yet stays news.
fn still_fresh(before: Option<&[Imported]>, mut now: Vec<Imported>) -> Vec<Imported> {
    for old in before.into_iter().flatten().filter(|old| old.fresh) {
        for entry in now.iter_mut().filter(|it| (it.mac, it.vtep) == (old.mac, old.vtep)) {
            entry.fresh = true;
        }
    }
    now
}

async fn push(agent: &Agent, link: &Link) -> Result<(), Trouble> {
    if link.note.direction != KernelDirection::Import {
        return Ok(());
    }
    import::push(agent, &link.note.network).await.map_err(|err| Trouble::failed(err.to_string()))
}

async fn left(agent: &Agent, link: &Link) -> Result<(), Trouble> {
    import::keep(agent, link);
    push(agent, link).await
}

fn no_device(link: &Link, path: &Path) -> Trouble {
    Trouble::waiting(format!("{} has no vxlan device {}", path.display(), link.note.dev))
}

/// Whether the namespace that was opened is still the one of its name.
fn is_still(at: &Found) -> bool {
    !at.monitor.has_ended()
        && NetNs::open(&NetNsRef::Path(at.path.clone()))
            .is_ok_and(|now| now == *at.netlink.namespace())
}

/// Opens the namespace that has the device. Of those that a pattern names, the newest.
async fn find(link: &Link) -> Result<Found, Trouble> {
    let mut last = Trouble::waiting(format!("no namespace matches {}", link.note.netns));
    for path in candidates(&link.note.netns)? {
        let opened = async {
            let namespace = NetNs::open(&NetNsRef::Path(path.clone()))?;
            // Listens before it reads, so that no change falls between the two.
            let monitor = Monitor::open(&namespace)?;
            let netlink = Netlink::open(&namespace)?;
            let known = vxlan::read(&netlink, &link.note.dev).await?;
            let another = known.is_none() && vxlan::is_another(&netlink, &link.note.dev).await?;
            Ok::<_, crate::link::Error>((monitor, netlink, known, another))
        };
        match opened.await {
            Ok((monitor, netlink, Some(known), _)) => {
                return Ok(Found {
                    path,
                    netlink,
                    monitor,
                    ipv6: known.device.ipv6,
                    ends: BTreeSet::new(),
                    local: BTreeSet::new(),
                    told: None,
                });
            }
            Ok((.., true)) => {
                last = Trouble::failed(format!(
                    "{} in {} is no vxlan device",
                    link.note.dev,
                    path.display()
                ));
            }
            Ok(_) => last = no_device(link, &path),
            Err(err) => last = err.into(),
        }
    }
    Err(last)
}

/// The files that a reference names, the newest first.
fn candidates(netns: &str) -> Result<Vec<PathBuf>, Trouble> {
    let reference: NetNsRef = netns.parse().map_err(Trouble::from)?;
    let path = reference.path();
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (Some((before, after)), Some(folder)) = (name.split_once('*'), path.parent()) else {
        return Ok(vec![path]);
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten().take(FILES_MAX) {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.len() >= before.len() + after.len()
            && name.starts_with(before)
            && name.ends_with(after)
        {
            let at = entry.metadata().and_then(|data| data.modified());
            found.push((at.unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Whether the device can carry the network.
fn fits(agent: &Agent, record: &NetworkRecord, known: &Known) -> Result<(), Trouble> {
    let (device, vni) = (&known.device, record.vni.get());
    if device.vni != vni {
        return Err(Trouble::failed(format!(
            "{} has VNI {}, and network {} has {vni}",
            device.name, device.vni, record.name
        )));
    }
    let port = record.udp_port.unwrap_or(agent.config.udp_port);
    if device.port != port {
        return Err(Trouble::failed(format!(
            "{} has UDP port {}, and network {} has {port}: create it with --udp-port {}",
            device.name, device.port, record.name, device.port
        )));
    }
    Ok(())
}

/// Looks whether a request can be carried out. A namespace or device that is not there is no error.
///
/// # Errors
/// What would stay wrong.
pub(super) async fn check(agent: &Agent, link: &Link) -> Result<(), Error> {
    let refused = |trouble: Trouble| Error::conflict(trouble.reason);
    let found = match find(link).await {
        Ok(found) => found,
        Err(trouble) if trouble.state == KernelState::Waiting => return Ok(()),
        Err(trouble) => return Err(refused(trouble)),
    };
    let known = vxlan::read(&found.netlink, &link.note.dev).await.map_err(|e| link_error(&e))?;
    match (known, agent.known_network(&link.note.network)) {
        (Some(known), Some(record)) => fits(agent, &record, &known).map_err(refused),
        _ => Ok(()),
    }
}

/// Enters the network's endpoints into a device once.
///
/// # Errors
/// Why that cannot be.
pub(super) async fn once(agent: &Agent, link: &Link) -> Result<(), Error> {
    let mut found = None;
    turn(agent, link, &mut found, Look::All)
        .await
        .map_err(|trouble| Error::conflict("the entries cannot be made").cause(trouble.reason))?;
    link.looked(agent, KernelState::Once, None);
    Ok(())
}

/// Removes what we have entered into a device; whether it is there. One that is gone has nothing.
pub(super) async fn take_back(link: &Link) -> Result<bool, Trouble> {
    let found = match find(link).await {
        Ok(found) => found,
        Err(trouble) if trouble.state == KernelState::Waiting => return Ok(false),
        Err(trouble) => return Err(trouble),
    };
    let Some(known) = vxlan::read(&found.netlink, &link.note.dev).await? else { return Ok(false) };
    let applied = export::apply(&found.netlink, &known, &[]).await;
    link.count(0, Vec::new());
    match applied.refused {
        None => Ok(true),
        Some(err) => Err(err.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_names_the_files_that_it_matches_the_newest_first() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["1-abc", "2-abc", "2-abd", "abc"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
        let named = |pattern: &str| -> Vec<String> {
            let found = candidates(dir.path().join(pattern).to_str().unwrap());
            let found = found.map_err(|trouble| trouble.reason).unwrap();
            found.iter().map(|path| path.file_name().unwrap().to_str().unwrap().into()).collect()
        };
        assert_eq!(named("*-abc"), ["2-abc", "1-abc"]);
        assert_eq!(named("2-*"), ["2-abd", "2-abc"]);
        assert_eq!(named("*-xyz"), Vec::<String>::new());
        assert_eq!(named("there-or-not"), ["there-or-not"]);
    }
}

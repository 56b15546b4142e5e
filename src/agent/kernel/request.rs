//! Requests: which devices shall be followed, and which no longer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use membership::key::HostName;
use membership::network as records;
use membership::record::NetworkRecord;

use super::{Link, Note, export, follow, import};
use crate::agent::{Agent, network_error};
use crate::control::types::{
    DEFAULT_DEVICE, Error, ExportedEntry, KernelAction, KernelDirection, KernelLink, KernelState,
    LinkKernel,
};

/// Most devices that are followed.
const LINKS_MAX: usize = 64;
/// How long a command waits for the first look at a device.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// The devices that are followed for a network.
pub fn links(agent: &Agent, record: &NetworkRecord) -> Vec<KernelLink> {
    let ours = |link: &Arc<Link>| link.note.network == record.id;
    agent.kernel.all().iter().filter(|link| ours(link)).map(|link| link.listed()).collect()
}

/// The endpoints of a network as a device is told of them.
pub fn exported(agent: &Agent, record: &NetworkRecord) -> Vec<ExportedEntry> {
    export::entries(agent, record, None)
}

/// Carries a request out.
///
/// # Errors
/// What is wrong with it, or what the kernel or the store refused.
pub async fn change(
    agent: &Agent,
    network: &str,
    request: LinkKernel,
) -> Result<Vec<KernelLink>, Error> {
    let record = match agent.network_record(network).await {
        Ok(record) => record,
        // What is followed for a network that was removed can still be stopped.
        Err(err) if request.action == KernelAction::Stop && request.host.is_none() => {
            let _changing = agent.kernel.changing.lock().await;
            let mut links = agent.kernel.all();
            links.retain(|link| {
                let note = &link.note;
                note.direction == request.direction
                    && (note.name == network || note.network.as_str() == network)
                    && is_meant(note, &request)
            });
            return if links.is_empty() { Err(err) } else { give_up(agent, links).await };
        }
        Err(err) => return Err(err),
    };
    match (request.action, request.direction) {
        (KernelAction::Stop, _) => stop(agent, &record, &request).await,
        (_, KernelDirection::Unknown) => Err(Error::bad_request("no such direction")),
        (KernelAction::Once, KernelDirection::Import) => {
            Err(Error::bad_request("an import is always followed"))
        }
        (KernelAction::Once, _) => {
            let link = Link::new(note(&record, &request)?);
            follow::once(agent, &link).await?;
            Ok(vec![link.listed()])
        }
        (KernelAction::Follow, _) => start(agent, &record, &request).await,
    }
}

fn note(record: &NetworkRecord, request: &LinkKernel) -> Result<Note, Error> {
    let netns = request.netns.clone().ok_or_else(|| {
        Error::bad_request("no namespace is given").next_step("give it with --netns")
    })?;
    Ok(Note {
        network: record.id.clone(),
        direction: request.direction,
        netns,
        dev: request.dev.clone(),
        vtep: request.vtep,
        name: record.name.to_string(),
    })
}

async fn start(
    agent: &Agent,
    record: &NetworkRecord,
    request: &LinkKernel,
) -> Result<Vec<KernelLink>, Error> {
    let note = note(record, request)?;
    if agent.kernel.all().len() >= LINKS_MAX {
        return Err(Error::conflict(format!("{LINKS_MAX} devices are followed already"))
            .next_step("stop one that is not needed: `--stop`"));
    }
    let changing = agent.kernel.changing.lock().await;
    // Only what the kernel says now can be wrong: a sandbox that is not there yet is waited for.
    let link = Link::new(note.clone());
    follow::check(agent, &link).await?;
    let others = others(agent, &note)?;
    for other in &others {
        other.end().await;
    }
    let mut looked = link.looked.subscribe();
    let mut present = None;
    let noted = agent.kernel.change(|links| {
        for other in &others {
            links.remove(&other.note);
        }
        present = Some(Arc::clone(links.entry(note).or_insert(link)));
    });
    if let Err(err) = noted {
        others.iter().for_each(|other| agent.kernel.resume(other));
        return Err(err);
    }
    agent.kernel.added.notify_one();
    drop(changing);
    let Some(link) = present else { return Err(Error::internal("the device is not followed")) };
    // One that was followed before has been looked at already, and this changes nothing of it.
    let first =
        async { while *looked.borrow_and_update() == 0 && looked.changed().await.is_ok() {} };
    if *link.looked.borrow() == 0 {
        let _ = tokio::time::timeout(FIRST_LOOK, first).await;
    }
    Ok(vec![link.listed()])
}

/// What is followed of the same device the same way, and what is asked for now takes the place of.
///
/// # Errors
/// Where that is another network's.
fn others(agent: &Agent, note: &Note) -> Result<Vec<Arc<Link>>, Error> {
    let mut links = agent.kernel.all();
    links.retain(|link| {
        let place = |note: &Note| (note.direction, note.netns.clone(), note.dev.clone());
        place(&link.note) == place(note) && link.note != *note
    });
    let is_theirs = |link: &&Arc<Link>| {
        link.note.network != note.network && agent.known_network(&link.note.network).is_some()
    };
    match links.iter().find(is_theirs) {
        None => Ok(links),
        Some(link) => {
            let Note { direction, netns, dev, name, .. } = &link.note;
            Err(Error::conflict(format!(
                "an {direction} of network {name} is followed with {dev} in {netns}"
            ))
            .next_step(format!(
                "stop that first: `skybridge network vtep {direction} {name} --stop --netns {netns}`"
            )))
        }
    }
}

/// Whether a device is one of those that a request names.
fn is_meant(note: &Note, request: &LinkKernel) -> bool {
    let is_dev = note.dev == request.dev;
    match &request.netns {
        Some(netns) => note.netns == *netns && is_dev,
        None => is_dev || request.dev == DEFAULT_DEVICE,
    }
}

async fn stop(
    agent: &Agent,
    record: &NetworkRecord,
    request: &LinkKernel,
) -> Result<Vec<KernelLink>, Error> {
    if let Some(host) = &request.host {
        let host = HostName::new(host).map_err(|err| Error::bad_request(err.to_string()))?;
        return forget_host(agent, record, &host).await;
    }
    let _changing = agent.kernel.changing.lock().await;
    let mut links = agent.kernel.of(&record.id, request.direction);
    links.retain(|link| is_meant(&link.note, request));
    if !links.is_empty() {
        return give_up(agent, links).await;
    }
    // What was entered once has no note.
    if request.direction == KernelDirection::Export && request.netns.is_some() {
        let link = Link::new(note(record, request)?);
        // Not what another network has in a device of its own.
        follow::check(agent, &link).await?;
        if follow::take_back(&link).await.map_err(|trouble| not_stopped(&link, trouble.reason))? {
            link.looked(agent, KernelState::Stopped, None);
            return Ok(vec![link.listed()]);
        }
    }
    let direction = request.direction;
    Err(Error::not_found(format!(
        "no {direction} of network {} is followed here that way",
        record.name
    ))
    .next_step(format!("`skybridge network vtep ls {}` lists those that are", record.name)))
}

/// Follows devices no longer, and takes back what was done.
async fn give_up(agent: &Agent, links: Vec<Arc<Link>>) -> Result<Vec<KernelLink>, Error> {
    let mut stopped = Vec::new();
    for link in links {
        link.end().await;
        let taken = match link.note.direction {
            KernelDirection::Export => {
                follow::take_back(&link).await.map(drop).map_err(|trouble| trouble.reason)
            }
            _ => {
                import::push_surely(agent, &link.note.network).await.map_err(|err| err.to_string())
            }
        };
        let forget = |links: &mut BTreeMap<Note, Arc<Link>>| {
            links.remove(&link.note);
        };
        let done = match taken {
            Ok(()) => agent.kernel.change(forget),
            Err(cause) => Err(not_stopped(&link, cause)),
        };
        if let Err(err) = done {
            agent.kernel.resume(&link);
            return Err(err);
        }
        link.looked(agent, KernelState::Stopped, None);
        stopped.push(link.listed());
    }
    Ok(stopped)
}

fn not_stopped(link: &Link, cause: String) -> Error {
    let Note { direction, name, netns, dev, .. } = &link.note;
    Error::unavailable(format!(
        "the {direction} of network {name} with {dev} in {netns} is not stopped: what was done \
         cannot be taken back"
    ))
    .cause(cause)
    .next_step("stop it again once that is over")
}

/// Takes out of a network what a host imported that is gone.
async fn forget_host(
    agent: &Agent,
    record: &NetworkRecord,
    host: &HostName,
) -> Result<Vec<KernelLink>, Error> {
    let present = agent.tables.view(|view| view.host(host).is_some_and(|host| host.is_present()));
    if present {
        return Err(Error::conflict(format!("host {host} is alive"))
            .next_step("stop its import there, or it imports the same again"));
    }
    let mut imported = record.static_vteps.iter().flat_map(|vtep| &vtep.imported);
    if !imported.any(|known| known.by.contains(host)) {
        return Err(Error::not_found(format!(
            "host {host} has imported nothing into network {}",
            record.name
        ))
        .next_step(format!("`skybridge network vtep ls {}` shows which hosts have", record.name)));
    }
    records::import(&agent.store, record.id.as_str(), host, &[], |_| true)
        .await
        .map_err(|err| network_error(&err))?;
    Ok(Vec::new())
}

//! This host's presence in the store: its records under a lease, kept alive.
//!
//! # Theory of operation
//!
//! ```text
//!   register: lease, then one transaction      hosts/HOST, vteps/ADDRESS   (under the lease)
//!        |                                     known/HOST                  (for good)
//!        v
//!   Online: keep-alive every third of the ttl --- no answer ---> Offline: try again, with pauses
//!        ^                                                            |
//!        +----- same lease, or a new one when it has ended -----------+
//! ```
//!
//! The transaction compares what was read, so of two hosts that want one name or one VTEP address
//! only one gets it; the other is refused and told who has it. While a lease lives, its host name
//! belongs to its id. A host that was reinstalled (same name, another id) is taken again once the
//! old lease has ended.
//!
//! **Incarnation.** A host counts its starts in its state directory ([`Identity`]). The first
//! registration of a session takes a number above the stored one, whatever the directory says; from
//! then on a stored number above ours means that another run of this host has taken over, and this
//! session writes nothing more.
//!
//! When the lease ends, others treat this host as suspect and go on sending to it
//! ([`crate::reconcile`]); nothing is lost by being offline for a while.

mod identity;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{Instrument, info, info_span, warn};

pub use identity::{Identity, IdentityError};

use crate::key::{HostId, HostName, Key};
use crate::record::{Extra, HostRecord, VERSION, VtepClaimRecord};
use crate::store::{self, Found, Store, conflict_pause, jitter};

/// Lease time of a host unless the caller says otherwise.
pub const TTL: Duration = Duration::from_secs(10);
/// Longest pause between two attempts to come back.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long closing waits for a store that is away.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// How often a registration that meets others is tried.
const ATTEMPTS: u32 = 16;

/// Why this host cannot be present.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The session was closed.
    #[error("the session is closed")]
    Closed,
    /// Another machine has this name.
    #[error(
        "host name {name} is in use by another host: its id is {theirs}, ours is {ours}; give one \
         of them another name, or wait until the lease of a host that is gone has ended"
    )]
    NameTaken {
        /// The name.
        name: HostName,
        /// The id of the host that has it.
        theirs: HostId,
        /// Our id.
        ours: HostId,
    },
    /// Another run of this host is registered.
    #[error(
        "host {name} runs a second time: incarnation {theirs} is registered, this one is {ours}; \
         stop one of them"
    )]
    Superseded {
        /// The name.
        name: HostName,
        /// The incarnation that is registered.
        theirs: u64,
        /// Ours.
        ours: u64,
    },
    /// Another host has one of our VTEP addresses.
    #[error(
        "VTEP address {address} is advertised by host {host} (id {theirs}), and cannot be ours \
         ({ours}) too: correct --vtep on one of them"
    )]
    VtepTaken {
        /// The address.
        address: IpAddr,
        /// The host that has it.
        host: HostName,
        /// Its id.
        theirs: HostId,
        /// Our id.
        ours: HostId,
    },
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// Whether somebody else must go or change before it can succeed.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        matches!(self, Self::NameTaken { .. } | Self::Superseded { .. } | Self::VtepTaken { .. })
    }
}

/// Whether others see this host.
#[derive(Clone, Debug)]
pub enum SessionState {
    /// They do not; the session tries again.
    Offline {
        /// Since when.
        since: Instant,
        /// Why.
        cause: String,
    },
    /// They do.
    Online {
        /// The lease.
        lease: i64,
        /// Since when.
        since: Instant,
    },
    /// Another host is in the way; the session tries again, slowly.
    Refused {
        /// Since when.
        since: Instant,
        /// Who, and what to do.
        cause: String,
    },
}

impl SessionState {
    /// Whether others see this host.
    #[must_use]
    pub const fn is_online(&self) -> bool {
        matches!(self, Self::Online { .. })
    }
}

enum Command {
    Close(oneshot::Sender<()>),
    Update(Box<HostRecord>, oneshot::Sender<Result<(), Error>>),
}

/// The presence of this host. Dropped without [`Session::close`], its lease runs out by itself.
#[derive(Debug)]
pub struct Session {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<SessionState>,
    incarnation: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Session {
    /// Registers and keeps the registration, with a lease of [`TTL`].
    ///
    /// # Errors
    ///
    /// A refusal, or why the store did not do it. Use [`Session::spawn`] to go on without it.
    pub async fn start(store: Store, host: HostRecord) -> Result<Self, Error> {
        Self::start_with(store, host, TTL).await
    }

    /// As [`Session::start`] with another lease time, in whole seconds.
    ///
    /// # Errors
    ///
    /// As [`Session::start`].
    pub async fn start_with(store: Store, host: HostRecord, ttl: Duration) -> Result<Self, Error> {
        let mut task = Task::new(store, host, ttl);
        task.register().await?;
        Ok(Self::run(task))
    }

    /// Registers in the background: the state tells when it has succeeded and why not yet.
    #[must_use]
    pub fn spawn(store: Store, host: HostRecord, ttl: Duration) -> Self {
        Self::run(Task::new(store, host, ttl))
    }

    fn run(mut task: Task) -> Self {
        let (commands, receiver) = mpsc::channel(8);
        let state = task.state.subscribe();
        let incarnation = task.incarnation.subscribe();
        let task = tokio::spawn(async move { task.run(receiver).await });
        Self { commands, state, incarnation, task }
    }

    /// Whether others see this host.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<SessionState> {
        self.state.clone()
    }

    /// Our incarnation: the caller's number, or a higher one where the store knew one.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        *self.incarnation.borrow()
    }

    /// Publishes a changed record (VTEPs, MTU). Name, id and incarnation stay as they are. While
    /// offline it is taken and published on return.
    ///
    /// # Errors
    ///
    /// A refusal, after which the record before stays in force; or why the store did not do it,
    /// after which the session tries again.
    pub async fn update(&self, host: HostRecord) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        let command = Command::Update(Box::new(host), answer);
        self.commands.send(command).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }

    /// Ends the lease, so that others see at once that this host is away.
    pub async fn close(self) {
        let (answer, answered) = oneshot::channel();
        if self.commands.send(Command::Close(answer)).await.is_ok() {
            // An error means that the task ended by itself, which is what we wait for.
            let _ = answered.await;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    store: Store,
    host: HostRecord,
    ttl: Duration,
    lease: i64,
    /// Whether the first registration has been made and our incarnation is settled.
    settled: bool,
    state: watch::Sender<SessionState>,
    incarnation: watch::Sender<u64>,
}

/// What a keep-alive stream needs.
struct Beat {
    keeper: LeaseKeeper,
    stream: LeaseKeepAliveStream,
}

impl Task {
    fn new(store: Store, host: HostRecord, ttl: Duration) -> Self {
        let cause = "not registered yet".to_owned();
        let (state, _) = watch::channel(SessionState::Offline { since: Instant::now(), cause });
        let (incarnation, _) = watch::channel(host.incarnation);
        Self { store, host, ttl, lease: 0, settled: false, state, incarnation }
    }

    async fn run(&mut self, mut commands: mpsc::Receiver<Command>) {
        let mut attempt = 0_u32;
        loop {
            let span = info_span!("session", lease = self.lease);
            let ended = async {
                if self.state.borrow().is_online() {
                    self.keep(&mut commands).await
                } else {
                    // Under the old lease while that lives. Commands wait meanwhile.
                    self.register().await.map(|()| Ended::Changed)
                }
            }
            .instrument(span)
            .await;
            let error = match ended {
                Ok(Ended::Closed) => return,
                Ok(Ended::Changed) => {
                    attempt = 0;
                    continue;
                }
                Err(error) => error,
            };
            self.offline(&error);
            let pause = if error.is_refusal() {
                PAUSE_MAX
            } else {
                Duration::from_millis(50).saturating_mul(1 << attempt.min(16)).min(PAUSE_MAX)
            };
            attempt = attempt.saturating_add(1);
            let until = Instant::now() + jitter(pause);
            if self.wait(until, &mut commands).await {
                return;
            }
        }
    }

    /// Serves commands while offline, until it is time to try again. True when closed.
    async fn wait(&mut self, until: Instant, commands: &mut mpsc::Receiver<Command>) -> bool {
        loop {
            tokio::select! {
                () = sleep_until(until) => return false,
                command = commands.recv() => {
                    if self.serve(command).await {
                        return true;
                    }
                }
            }
        }
    }

    /// Keeps the lease alive until that fails.
    async fn keep(&mut self, commands: &mut mpsc::Receiver<Command>) -> Result<Ended, Error> {
        let third = self.ttl / 3;
        let lease = self.lease;
        let mut confirmed = Instant::now();
        let mut beat = self.open().await?;
        loop {
            tokio::select! {
                () = sleep_until(confirmed + third) => {}
                command = commands.recv() => {
                    if self.serve(command).await {
                        return Ok(Ended::Closed);
                    }
                    if self.lease != lease || !self.state.borrow().is_online() {
                        return Ok(Ended::Changed);
                    }
                    continue;
                }
            }
            // The lease counts from when the store got the request, at the earliest from now.
            let asked = Instant::now();
            if let Err(error) = self.beat(&mut beat, third).await {
                if error == store::Error::LeaseEnded {
                    self.lease = 0;
                    return Err(error.into());
                }
                // One broken stream is no absence: another endpoint may answer at once.
                beat = match self.open().await {
                    Ok(beat) => beat,
                    Err(store::Error::LeaseEnded) => {
                        self.lease = 0;
                        return Err(store::Error::LeaseEnded.into());
                    }
                    Err(error) => return Err(error.into()),
                };
            }
            confirmed = asked;
        }
    }

    async fn open(&self) -> Result<Beat, store::Error> {
        let wait = self.ttl / 3;
        let opened = timeout(wait, self.store.keep_alive(self.lease)).await;
        let (keeper, stream) = opened.map_err(|_| self.store.late(wait))??;
        Ok(Beat { keeper, stream })
    }

    async fn beat(&self, beat: &mut Beat, wait: Duration) -> Result<(), store::Error> {
        let ask = async {
            beat.keeper.keep_alive().await?;
            beat.stream.message().await
        };
        let answer = timeout(wait, ask).await.map_err(|_| self.store.late(wait))?;
        match answer.map_err(|error| self.store.sort(&error))? {
            Some(answer) if answer.ttl() > 0 => Ok(()),
            Some(_) => Err(store::Error::LeaseEnded),
            None => Err(self.store.late(wait)),
        }
    }

    /// Carries out one command. True when closed.
    async fn serve(&mut self, command: Option<Command>) -> bool {
        match command {
            // The handle is gone; the task is aborted with it.
            None => std::future::pending().await,
            Some(Command::Close(done)) => {
                if self.lease != 0 {
                    let revoke = timeout(CLOSE_WAIT, self.store.revoke(self.lease)).await;
                    if !matches!(revoke, Ok(Ok(()))) {
                        warn!("the lease could not be ended and runs out by itself");
                    }
                }
                let cause = "closed".to_owned();
                self.state.send_replace(SessionState::Offline { since: Instant::now(), cause });
                let _ = done.send(());
                true
            }
            Some(Command::Update(host, done)) => {
                let (name, id) = (self.host.name.clone(), self.host.id.clone());
                let incarnation = self.host.incarnation;
                let changed = HostRecord { name, id, incarnation, ..*host };
                let before = std::mem::replace(&mut self.host, changed);
                let result = self.register().await;
                match &result {
                    Ok(()) => {}
                    // What nobody can have must not cost us what we had.
                    Err(error) if error.is_refusal() => self.host = before,
                    Err(error) => self.offline(error),
                }
                // The caller may have stopped waiting.
                let _ = done.send(result);
                false
            }
        }
    }

    fn offline(&self, error: &Error) {
        let cause = error.to_string();
        let refused = error.is_refusal();
        let since = match &*self.state.borrow() {
            SessionState::Offline { since, cause: before } if !refused && *before == cause => {
                return;
            }
            SessionState::Refused { cause: before, .. } if refused && *before == cause => return,
            SessionState::Offline { since, .. } | SessionState::Refused { since, .. } => *since,
            SessionState::Online { .. } => Instant::now(),
        };
        warn!(err = cause, "this host is not present in the store");
        self.state.send_replace(if refused {
            SessionState::Refused { since, cause }
        } else {
            SessionState::Offline { since, cause }
        });
    }

    /// Writes our records under a living lease.
    async fn register(&mut self) -> Result<(), Error> {
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                sleep(conflict_pause(attempt)).await;
            }
            if self.lease == 0 {
                self.lease = self.store.grant(self.ttl).await?;
            }
            match self.try_register().await {
                Ok(true) => {
                    self.settled = true;
                    self.incarnation.send_if_modified(|value| {
                        std::mem::replace(value, self.host.incarnation) != self.host.incarnation
                    });
                    let was_online = self.state.borrow().is_online();
                    if !was_online {
                        let (lease, since) = (self.lease, Instant::now());
                        let incarnation = self.host.incarnation;
                        info!(lease, incarnation, host = %self.host.name, "this host is present");
                        self.state.send_replace(SessionState::Online { lease, since });
                    }
                    return Ok(());
                }
                Ok(false) => {}
                Err(Error::Store(store::Error::LeaseEnded)) => self.lease = 0,
                Err(error) => {
                    self.abandon(&error).await;
                    return Err(error);
                }
            }
        }
        Err(store::Error::Busy { what: "registration of this host", attempts: ATTEMPTS }.into())
    }

    /// A lease that a refused registration leaves unused is given back.
    async fn abandon(&mut self, error: &Error) {
        if error.is_refusal() && !self.state.borrow().is_online() {
            let lease = std::mem::take(&mut self.lease);
            // It runs out by itself if this fails.
            let _ = self.store.revoke(lease).await;
        }
    }

    /// One attempt; false when somebody else changed what was read.
    async fn try_register(&mut self) -> Result<bool, Error> {
        let store = self.store.clone();
        let host_key = Key::Host(self.host.name.clone());
        let known_key = Key::KnownHost(self.host.name.clone());
        let ours: BTreeSet<IpAddr> = self.host.vteps.iter().map(|vtep| vtep.advertise).collect();

        let mut reads = vec![store.read_key(&host_key), store.read_key(&known_key)];
        reads.extend(ours.iter().map(|ip| store.read_key(&Key::VtepClaim(*ip))));
        let found = store.read(reads).await?.reads;
        let [present, known, claims @ ..] = found.as_slice() else { return Ok(false) };
        // A host record that cannot be read is replaced: this is its owner speaking.
        let parse = |entries: &Vec<store::Entry>| {
            entries.first().and_then(|entry| Store::decode::<HostRecord>(&host_key, entry).ok())
        };
        let revision =
            |entries: &Vec<store::Entry>| entries.first().map_or(0, |entry| entry.mod_revision);
        let (present_host, known_host) = (parse(present), parse(known));
        self.check_name(present_host.as_ref())?;
        self.check_incarnation(present_host.as_ref(), known_host.as_ref())?;

        let mut when = vec![
            store.unchanged(&host_key, revision(present)),
            store.unchanged(&known_key, revision(known)),
        ];
        let mut then = Vec::new();
        for (ip, entries) in ours.iter().zip(claims) {
            let key = Key::VtepClaim(*ip);
            self.check_claim(*ip, &key, entries)?;
            when.push(store.unchanged(&key, revision(entries)));
            let claim = VtepClaimRecord {
                version: VERSION,
                host: self.host.name.clone(),
                id: self.host.id.clone(),
                extra: Extra::new(),
            };
            then.push(store.put(&key, &claim, self.lease)?);
        }
        // Addresses that we had before and have no more.
        let before = present_host.iter().filter(|found| found.record.id == self.host.id);
        for vtep in before.flat_map(|found| &found.record.vteps) {
            if !ours.contains(&vtep.advertise) {
                then.push(store.delete(&Key::VtepClaim(vtep.advertise)));
            }
        }
        then.push(store.put(&host_key, &self.host, self.lease)?);
        // Who is here is not collected: whatever was counted of an absence begins anew.
        then.push(store.delete(&Key::Absent(self.host.name.clone())));
        if known_host.is_none_or(|found| found.record != self.host) {
            then.push(store.put(&known_key, &self.host, 0)?);
        }
        Ok(store.txn(when, then, Vec::new()).await?.succeeded)
    }

    fn check_name(&self, present: Option<&Found<HostRecord>>) -> Result<(), Error> {
        match present {
            Some(found) if found.record.id != self.host.id => Err(Error::NameTaken {
                name: self.host.name.clone(),
                theirs: found.record.id.clone(),
                ours: self.host.id.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn check_incarnation(
        &mut self,
        present: Option<&Found<HostRecord>>,
        known: Option<&Found<HostRecord>>,
    ) -> Result<(), Error> {
        let of_us = |found: &&Found<HostRecord>| found.record.id == self.host.id;
        let stored = [present, known].into_iter().flatten().filter(of_us);
        let Some(theirs) = stored.map(|found| found.record.incarnation).max() else {
            return Ok(());
        };
        let ours = self.host.incarnation;
        if !self.settled && theirs >= ours {
            // The first registration of this run: our directory may be older than the store.
            self.host.incarnation = theirs.saturating_add(1);
        } else if theirs > ours {
            return Err(Error::Superseded { name: self.host.name.clone(), theirs, ours });
        }
        Ok(())
    }

    fn check_claim(&self, ip: IpAddr, key: &Key, entries: &[store::Entry]) -> Result<(), Error> {
        let Some(entry) = entries.first() else { return Ok(()) };
        let Ok(claim) = Store::decode::<VtepClaimRecord>(key, entry) else { return Ok(()) };
        if claim.record.id == self.host.id {
            return Ok(());
        }
        Err(Error::VtepTaken {
            address: ip,
            host: claim.record.host,
            theirs: claim.record.id,
            ours: self.host.id.clone(),
        })
    }
}

/// How a stretch of the session's life ended, when not with an error.
enum Ended {
    /// The session was closed.
    Closed,
    /// The lease or the state is another one now.
    Changed,
}

//! Registration: this host's records as they shall be, in one transaction that compares what it
//! read.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tokio::time::{Instant, sleep};
use tracing::info;

use super::{Error, SessionState, Task};
use crate::key::Key;
use crate::record::{Extra, HostRecord, VERSION, VtepClaimRecord};
use crate::store::{self, Found, Store, conflict_pause};

/// How often a registration that meets others is tried.
const ATTEMPTS: u32 = 16;

impl Task {
    /// Writes our records under a living lease.
    pub(super) async fn register(&mut self) -> Result<(), Error> {
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

        let absent_key = Key::Absent(self.host.name.clone());
        let mut reads =
            Vec::from([&host_key, &known_key, &absent_key].map(|key| store.read_key(key)));
        reads.extend(ours.iter().map(|ip| store.read_key(&Key::VtepClaim(*ip))));
        let found = store.read(reads).await?.reads;
        let [present, known, absent, claims @ ..] = found.as_slice() else { return Ok(false) };
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
            store.unchanged(&absent_key, revision(absent)),
        ];
        let mut then = Vec::new();
        for (ip, entries) in ours.iter().zip(claims) {
            let key = Key::VtepClaim(*ip);
            when.push(store.unchanged(&key, revision(entries)));
            if self.claimed(*ip, &key, entries)? {
                continue;
            }
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
        let is_ours =
            |found: &Found<HostRecord>, lease| found.record == self.host && found.lease == lease;
        if !present_host.is_some_and(|found| is_ours(&found, self.lease)) {
            then.push(store.put(&host_key, &self.host, self.lease)?);
        }
        if !known_host.is_some_and(|found| is_ours(&found, 0)) {
            then.push(store.put(&known_key, &self.host, 0)?);
        }
        if !absent.is_empty() {
            // Who is here is not collected: whatever was counted of an absence begins anew.
            then.push(store.delete(&absent_key));
        }
        if then.is_empty() {
            return Ok(true);
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

    /// Whether a VTEP address is ours already, under our lease.
    fn claimed(&self, ip: IpAddr, key: &Key, entries: &[store::Entry]) -> Result<bool, Error> {
        let Some(entry) = entries.first() else { return Ok(false) };
        let Ok(claim) = Store::decode::<VtepClaimRecord>(key, entry) else { return Ok(false) };
        if claim.record.id == self.host.id {
            return Ok(claim.record.host == self.host.name && claim.lease == self.lease);
        }
        Err(Error::VtepTaken {
            address: ip,
            host: claim.record.host,
            theirs: claim.record.id,
            ours: self.host.id.clone(),
        })
    }
}

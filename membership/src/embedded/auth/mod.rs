//! Users, roles and what they may do: etcd's rules, kept with the data.
//!
//! # Theory of operation
//!
//! All of it is one small value, [`Auth`]. It changes on the writer thread like everything else: a
//! change is made on a copy, written in the same durable transaction as the batch around it, and
//! becomes visible with it. So a request that follows an acknowledged change is judged by it, and a
//! crash loses no acknowledged change. Writes are judged on the writer thread by the value that is
//! current there, reads by the visible one.
//!
//! Passwords are hashed before they come here ([`password`]), off the async threads. A token names
//! a user and the revision of this value at which its password was checked; a later change of that
//! user's password, its removal, or switching authentication off makes it worthless.

pub(crate) mod password;
pub(crate) mod permission;
pub(crate) mod token;

use std::collections::{BTreeMap, BTreeSet};

use etcd_client::proto::{PbPutRequest, PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp};
use serde::{Deserialize, Serialize};

use super::error::Refusal;
use super::lease::Leases;
use super::limits;
use permission::{Kind, Permission, Ranges};

/// The user that must exist, and the role that it must have, before authentication is switched on.
pub(crate) const ROOT: &str = "root";

/// The role of hosts that have joined the store.
pub(crate) const HOSTS: &str = "skybridge-host";

/// Who asks, as far as it has been proven.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Caller(pub(crate) Option<String>);

/// How a user proves who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Proof {
    /// By a password with this hash.
    Password(String),
    /// By a certificate only.
    Certificate,
    /// Not at all: its password was set to nothing, as etcd allows.
    Nothing,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct User {
    proof: Proof,
    /// Revision at which the proof was set; older tokens are worthless.
    since: u64,
    roles: BTreeSet<String>,
}

/// Whether authentication is on, all users, all roles.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Auth {
    enabled: bool,
    revision: u64,
    /// Revision at which it was last switched off; older tokens are worthless.
    epoch: u64,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Vec<Permission>>,
    /// What each user may read and write, by all its roles. Follows from the rest.
    #[serde(skip)]
    ranges: BTreeMap<String, Ranges>,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            enabled: false,
            // A fresh etcd is at revision 1 too.
            revision: 1,
            epoch: 0,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            ranges: BTreeMap::new(),
        }
    }
}

impl Auth {
    /// The value that was stored as `bytes`.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut auth: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        auth.derive();
        Ok(auth)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        // Strings and numbers only, in maps with string keys: this has no way to fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub(crate) fn enabled(&self) -> bool {
        self.enabled
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether a token of `user` that was given at `revision` still counts.
    pub(crate) fn honours(&self, user: &str, revision: u64) -> bool {
        self.enabled
            && revision >= self.epoch
            && self.users.get(user).is_some_and(|user| revision >= user.since)
    }

    pub(crate) fn proof(&self, user: &str) -> Option<&Proof> {
        self.users.get(user).map(|user| &user.proof)
    }

    fn changed(&mut self) {
        self.revision = self.revision.saturating_add(1);
        self.derive();
    }

    fn derive(&mut self) {
        let roles = &self.roles;
        self.ranges = self
            .users
            .iter()
            .map(|(name, user)| {
                let granted = user.roles.iter().filter_map(|role| roles.get(role)).flatten();
                (name.clone(), Ranges::new(granted))
            })
            .collect();
    }

    // ===== changes =====

    pub(crate) fn enable(&mut self) -> Result<(), Refusal> {
        let root = self.users.get(ROOT).ok_or(Refusal::RootUserMissing)?;
        if !root.roles.contains(ROOT) {
            return Err(Refusal::RootRoleMissing);
        }
        self.enabled = true;
        Ok(())
    }

    pub(crate) fn disable(&mut self) {
        if self.enabled {
            self.enabled = false;
            self.changed();
            self.epoch = self.revision;
        }
    }

    pub(crate) fn user_add(&mut self, name: &str, proof: Proof) -> Result<(), Refusal> {
        if name.is_empty() {
            return Err(Refusal::UserEmpty);
        }
        check_name(name)?;
        if self.users.contains_key(name) {
            return Err(Refusal::UserExists);
        }
        if self.users.len() >= limits::AUTH_USERS {
            return Err(Refusal::TooManyRequests);
        }
        let since = self.revision.saturating_add(1);
        self.users.insert(name.to_owned(), User { proof, since, roles: BTreeSet::new() });
        self.changed();
        Ok(())
    }

    pub(crate) fn user_delete(&mut self, name: &str) -> Result<(), Refusal> {
        if self.enabled && name == ROOT {
            return Err(Refusal::InvalidAuthManagement);
        }
        self.users.remove(name).ok_or(Refusal::UserNotFound)?;
        self.changed();
        Ok(())
    }

    /// Sets how a user proves who it is; one that has only its certificate keeps to that.
    pub(crate) fn user_change(&mut self, name: &str, proof: Proof) -> Result<(), Refusal> {
        let since = self.revision.saturating_add(1);
        let user = self.users.get_mut(name).ok_or(Refusal::UserNotFound)?;
        if user.proof != Proof::Certificate {
            user.proof = proof;
        }
        user.since = since;
        self.changed();
        Ok(())
    }

    pub(crate) fn user_grant(&mut self, name: &str, role: &str) -> Result<(), Refusal> {
        let user = self.users.get_mut(name).ok_or(Refusal::UserNotFound)?;
        if role != ROOT && !self.roles.contains_key(role) {
            return Err(Refusal::RoleNotFound);
        }
        if user.roles.insert(role.to_owned()) {
            self.changed();
        }
        Ok(())
    }

    pub(crate) fn user_revoke(&mut self, name: &str, role: &str) -> Result<(), Refusal> {
        if self.enabled && name == ROOT && role == ROOT {
            return Err(Refusal::InvalidAuthManagement);
        }
        let user = self.users.get_mut(name).ok_or(Refusal::UserNotFound)?;
        if !user.roles.remove(role) {
            return Err(Refusal::RoleNotGranted);
        }
        self.changed();
        Ok(())
    }

    pub(crate) fn role_add(&mut self, name: &str) -> Result<(), Refusal> {
        if name.is_empty() {
            return Err(Refusal::RoleEmpty);
        }
        check_name(name)?;
        if self.roles.contains_key(name) {
            return Err(Refusal::RoleExists);
        }
        if self.roles.len() >= limits::AUTH_ROLES {
            return Err(Refusal::TooManyRequests);
        }
        self.roles.insert(name.to_owned(), Vec::new());
        self.changed();
        Ok(())
    }

    pub(crate) fn role_delete(&mut self, name: &str) -> Result<(), Refusal> {
        if self.enabled && name == ROOT {
            return Err(Refusal::InvalidAuthManagement);
        }
        self.roles.remove(name).ok_or(Refusal::RoleNotFound)?;
        for user in self.users.values_mut() {
            user.roles.remove(name);
        }
        self.changed();
        Ok(())
    }

    /// Grants a permission, in place of the one that the role has on the same range.
    pub(crate) fn role_grant(&mut self, name: &str, permission: Permission) -> Result<(), Refusal> {
        if !permission.is_valid() {
            return Err(Refusal::InvalidAuthManagement);
        }
        let role = self.roles.get_mut(name).ok_or(Refusal::RoleNotFound)?;
        let others = role.iter().filter(|granted| !granted.same_range(&permission)).count();
        if others >= limits::AUTH_PERMISSIONS {
            return Err(Refusal::TooManyRequests);
        }
        role.retain(|granted| !granted.same_range(&permission));
        role.push(permission);
        role.sort_by(|a, b| a.key.cmp(&b.key));
        self.changed();
        Ok(())
    }

    pub(crate) fn role_revoke(
        &mut self,
        name: &str,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<(), Refusal> {
        let role = self.roles.get_mut(name).ok_or(Refusal::RoleNotFound)?;
        let before = role.len();
        role.retain(|granted| granted.key != key || granted.range_end != range_end);
        if role.len() == before {
            return Err(Refusal::PermissionNotGranted);
        }
        self.changed();
        Ok(())
    }

    // ===== hosts =====

    /// Switches authentication on for a store that hosts join: whoever has no certificate of it may
    /// nothing, a host what lies below `/skybridge/`, and only `root` everything. What an operator
    /// has set up beside that stays.
    pub(crate) fn open_to_hosts(&mut self, prefix: &str) -> Result<(), Refusal> {
        if !self.users.contains_key(ROOT) {
            self.user_add(ROOT, Proof::Certificate)?;
        }
        self.user_grant(ROOT, ROOT)?;
        if !self.roles.contains_key(HOSTS) {
            self.role_add(HOSTS)?;
        }
        let (key, range_end) = (format!("{prefix}/skybridge/"), format!("{prefix}/skybridge0"));
        let (key, range_end) = (key.into_bytes(), range_end.into_bytes());
        self.role_grant(HOSTS, Permission { kind: Kind::Both, key, range_end })?;
        self.enable()
    }

    /// Makes a host a user with the role of hosts.
    pub(crate) fn admit(&mut self, host: &str) -> Result<(), Refusal> {
        if !self.users.contains_key(host) {
            self.user_add(host, Proof::Certificate)?;
        }
        self.user_grant(host, HOSTS)
    }

    /// Whether a host may have its next certificate.
    pub(crate) fn is_host(&self, host: &str) -> bool {
        self.users.get(host).is_some_and(|user| user.roles.contains(HOSTS))
    }

    // ===== listings =====

    pub(crate) fn users(&self) -> Vec<String> {
        self.users.keys().cloned().collect()
    }

    pub(crate) fn roles(&self) -> Vec<String> {
        self.roles.keys().cloned().collect()
    }

    /// Roles of a user, for an administrator or that user.
    pub(crate) fn user(&self, caller: &Caller, name: &str) -> Result<Vec<String>, Refusal> {
        if let Err(refusal) = self.admin(caller)
            && caller.0.as_deref() != Some(name)
        {
            return Err(refusal);
        }
        let user = self.users.get(name).ok_or(Refusal::UserNotFound)?;
        Ok(user.roles.iter().cloned().collect())
    }

    /// Permissions of a role, for an administrator or one who has it.
    pub(crate) fn role(&self, caller: &Caller, name: &str) -> Result<Vec<Permission>, Refusal> {
        if let Err(refusal) = self.admin(caller) {
            let asker = caller.0.as_ref().and_then(|user| self.users.get(user));
            if !asker.is_some_and(|user| user.roles.contains(name)) {
                return Err(refusal);
            }
        }
        let role = self.roles.get(name).ok_or(Refusal::RoleNotFound)?;
        Ok(if name == ROOT { vec![Permission::everything()] } else { role.clone() })
    }

    // ===== judgements =====

    /// Whether somebody is known at all.
    pub(crate) fn known(&self, caller: &Caller) -> Result<(), Refusal> {
        if self.enabled && caller.0.is_none() { Err(Refusal::UserEmpty) } else { Ok(()) }
    }

    /// Whether somebody has the root role.
    pub(crate) fn admin(&self, caller: &Caller) -> Result<(), Refusal> {
        if !self.enabled {
            return Ok(());
        }
        let name = caller.0.as_ref().ok_or(Refusal::UserEmpty)?;
        let user = self.users.get(name).ok_or(Refusal::UserNotFound)?;
        if user.roles.contains(ROOT) { Ok(()) } else { Err(Refusal::PermissionDenied) }
    }

    pub(crate) fn read(&self, caller: &Caller, key: &[u8], end: &[u8]) -> Result<(), Refusal> {
        self.judge(caller, key, end, Kind::Read)
    }

    pub(crate) fn write(&self, caller: &Caller, key: &[u8], end: &[u8]) -> Result<(), Refusal> {
        self.judge(caller, key, end, Kind::Write)
    }

    fn judge(&self, caller: &Caller, key: &[u8], end: &[u8], kind: Kind) -> Result<(), Refusal> {
        if !self.enabled {
            return Ok(());
        }
        let name = caller.0.as_ref().ok_or(Refusal::UserEmpty)?;
        let user = self.users.get(name).ok_or(Refusal::PermissionDenied)?;
        let allowed = user.roles.contains(ROOT)
            || self.ranges.get(name).is_some_and(|ranges| ranges.allow(kind, key, end));
        if allowed { Ok(()) } else { Err(Refusal::PermissionDenied) }
    }

    pub(crate) fn put(
        &self,
        caller: &Caller,
        leases: &Leases,
        put: &PbPutRequest,
    ) -> Result<(), Refusal> {
        self.write(caller, &put.key, &[])?;
        // Whoever hangs a key on a lease keeps the lease's other keys alive.
        self.lease(caller, leases, put.lease, Kind::Write)?;
        if put.prev_kv { self.read(caller, &put.key, &[]) } else { Ok(()) }
    }

    pub(crate) fn delete(
        &self,
        caller: &Caller,
        key: &[u8],
        end: &[u8],
        previous: bool,
    ) -> Result<(), Refusal> {
        self.write(caller, key, end)?;
        if previous { self.read(caller, key, end) } else { Ok(()) }
    }

    /// Judges both branches, whichever will run. `leases` is `None` for one that puts nothing.
    ///
    /// Deviation: etcd 3.4 to 3.6 look neither at the lease nor at the previous value of a put that
    /// stands in a transaction.
    pub(crate) fn txn(
        &self,
        caller: &Caller,
        leases: Option<&Leases>,
        txn: &PbTxnRequest,
    ) -> Result<(), Refusal> {
        if !self.enabled {
            return Ok(());
        }
        for compare in &txn.compare {
            self.read(caller, &compare.key, &compare.range_end)?;
        }
        for PbTxnRequestOp { request } in txn.success.iter().chain(&txn.failure) {
            match request {
                Some(PbTxnOpRequest::RequestRange(range)) => {
                    self.read(caller, &range.key, &range.range_end)?;
                }
                Some(PbTxnOpRequest::RequestPut(put)) => match leases {
                    Some(leases) => self.put(caller, leases, put)?,
                    None => self.write(caller, &put.key, &[])?,
                },
                Some(PbTxnOpRequest::RequestDeleteRange(delete)) => {
                    self.delete(caller, &delete.key, &delete.range_end, delete.prev_kv)?;
                }
                Some(PbTxnOpRequest::RequestTxn(nested)) => self.txn(caller, leases, nested)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Whether somebody may do with all keys of a lease what is asked. A lease that is not there
    /// has none.
    pub(crate) fn lease(
        &self,
        caller: &Caller,
        leases: &Leases,
        id: i64,
        kind: Kind,
    ) -> Result<(), Refusal> {
        if !self.enabled || self.admin(caller).is_ok() {
            return Ok(());
        }
        leases.keys(id).try_for_each(|key| self.judge(caller, key, &[], kind))
    }
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if name.len() > limits::AUTH_NAME_BYTES { Err(Refusal::TooLarge) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str) -> Caller {
        Caller(Some(name.to_owned()))
    }

    fn permission(kind: Kind, key: &str, end: &str) -> Permission {
        Permission { kind, key: key.into(), range_end: end.into() }
    }

    fn sample() -> Auth {
        let mut auth = Auth::default();
        auth.user_add(ROOT, Proof::Password("x".to_owned())).unwrap();
        auth.user_grant(ROOT, ROOT).unwrap();
        auth.role_add("host").unwrap();
        auth.role_grant("host", permission(Kind::Both, "/a/", "/a0")).unwrap();
        auth.role_grant("host", permission(Kind::Read, "/b", "")).unwrap();
        auth.user_add("h1", Proof::Certificate).unwrap();
        auth.user_grant("h1", "host").unwrap();
        auth
    }

    #[test]
    fn nobody_is_asked_while_it_is_off_and_everybody_once_it_is_on() {
        let mut auth = sample();
        let nobody = Caller::default();
        auth.write(&nobody, b"/x", b"").unwrap();
        auth.enable().unwrap();
        assert_eq!(auth.write(&nobody, b"/x", b""), Err(Refusal::UserEmpty));
        assert_eq!(auth.admin(&nobody), Err(Refusal::UserEmpty));
        assert_eq!(auth.read(&caller("who"), b"/a/1", b""), Err(Refusal::PermissionDenied));
        auth.write(&caller(ROOT), b"/x", b"\0").unwrap();
        auth.write(&caller("h1"), b"/a/1", b"").unwrap();
        auth.read(&caller("h1"), b"/b", b"").unwrap();
        assert_eq!(auth.write(&caller("h1"), b"/b", b""), Err(Refusal::PermissionDenied));
        assert_eq!(auth.admin(&caller("h1")), Err(Refusal::PermissionDenied));
    }

    #[test]
    fn a_token_ends_with_the_password_the_user_and_the_switch() {
        let mut auth = sample();
        auth.enable().unwrap();
        let given = auth.revision();
        assert!(auth.honours(ROOT, given));
        auth.role_add("other").unwrap();
        assert!(auth.honours(ROOT, given), "a change that is not the user's leaves its tokens");
        auth.user_change(ROOT, Proof::Password("y".to_owned())).unwrap();
        assert!(!auth.honours(ROOT, given));
        let given = auth.revision();
        assert!(auth.honours(ROOT, given));
        auth.disable();
        auth.enable().unwrap();
        assert!(!auth.honours(ROOT, given));
        let given = auth.revision();
        auth.user_delete("h1").unwrap();
        assert!(!auth.honours("h1", given));
        auth.user_add("h1", Proof::Certificate).unwrap();
        assert!(!auth.honours("h1", given), "a new user of the same name is another one");
    }

    #[test]
    fn it_reads_back_as_written_with_what_follows_from_it() {
        let mut auth = sample();
        auth.enable().unwrap();
        let read = Auth::decode(&auth.encode()).unwrap();
        assert_eq!(read.encode(), auth.encode());
        read.write(&caller("h1"), b"/a/1", b"").unwrap();
        assert!(Auth::decode(b"{}").is_err() && Auth::decode(b"junk").is_err());
    }

    #[test]
    fn a_role_that_goes_takes_its_permissions_along() {
        let mut auth = sample();
        auth.enable().unwrap();
        auth.role_delete("host").unwrap();
        assert_eq!(auth.read(&caller("h1"), b"/b", b""), Err(Refusal::PermissionDenied));
        assert_eq!(auth.user(&caller("h1"), "h1").unwrap(), Vec::<String>::new());
        assert_eq!(auth.user_delete(ROOT), Err(Refusal::InvalidAuthManagement));
        assert_eq!(auth.user_revoke(ROOT, ROOT), Err(Refusal::InvalidAuthManagement));
    }

    #[test]
    fn names_and_numbers_are_bounded() {
        let mut auth = Auth::default();
        let long = "x".repeat(limits::AUTH_NAME_BYTES + 1);
        assert_eq!(auth.user_add(&long, Proof::Nothing), Err(Refusal::TooLarge));
        assert_eq!(auth.role_add(&long), Err(Refusal::TooLarge));
        auth.role_add("r").unwrap();
        for n in 0..limits::AUTH_PERMISSIONS {
            auth.role_grant("r", permission(Kind::Read, &format!("k{n}"), "")).unwrap();
        }
        let more = permission(Kind::Read, "more", "");
        assert_eq!(auth.role_grant("r", more), Err(Refusal::TooManyRequests));
        auth.role_grant("r", permission(Kind::Both, "k0", "")).unwrap();
    }
}

//! Static VTEPs, as somebody writes them down.

use std::net::IpAddr;

use fdb::Revision;

use super::check::check_vtep;
use super::{Error, update_at};
use crate::key::Key;
use crate::record::{NetworkRecord, StaticVtep, VtepClaimRecord};
use crate::store::Store;

/// Adds a static VTEP, or changes the one with its address: port, MTU and checksum are replaced,
/// MACs are added, and one that is there already gets the new addresses. With the revision of the store
/// that has it.
///
/// # Errors
///
/// [`Error::VtepIsHost`] when a host advertises the address, [`Error::Vtep`], or as [`super::update`].
pub async fn vtep_add(
    store: &Store,
    name_or_id: &str,
    vtep: &StaticVtep,
) -> Result<(NetworkRecord, Revision), Error> {
    check_vtep(vtep)?;
    if let Some(claim) = store.get::<VtepClaimRecord>(&Key::VtepClaim(vtep.address)).await? {
        let host = claim.record.host.to_string();
        return Err(Error::VtepIsHost { address: vtep.address, host });
    }
    update_at(store, name_or_id, |record| {
        let present = record.static_vteps.iter_mut().find(|other| other.address == vtep.address);
        let Some(present) = present else {
            record.static_vteps.push(vtep.clone());
            return Ok(());
        };
        // It is somebody's now, and stays when the imports behind it go.
        present.by_import = false;
        present.port = vtep.port;
        present.mtu = vtep.mtu;
        present.checksum = vtep.checksum;
        for known in &vtep.macs {
            present.macs.retain(|other| other.mac != known.mac);
            present.macs.push(known.clone());
        }
        Ok(())
    })
    .await
}

/// Removes a static VTEP. With the revision of the store that has it no more.
///
/// # Errors
///
/// [`Error::VtepNotFound`], or as [`super::update`].
pub async fn vtep_remove(
    store: &Store,
    name_or_id: &str,
    address: IpAddr,
) -> Result<(NetworkRecord, Revision), Error> {
    update_at(store, name_or_id, |record| {
        let before = record.static_vteps.len();
        record.static_vteps.retain(|vtep| vtep.address != address);
        if record.static_vteps.len() == before {
            return Err(Error::VtepNotFound { name: record.name.clone(), address });
        }
        Ok(())
    })
    .await
}

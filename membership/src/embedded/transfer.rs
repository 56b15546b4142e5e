//! Export of a store that nobody serves, from its file. Everything else goes over the API, see
//! [`crate::transfer`].

use std::io::Write;
use std::path::Path;

use super::error::Error;
use super::mvcc::KeyRange;
use super::store::Store;
use crate::transfer::{Exportable, Exported, write_entry, write_head};

/// Writes all keys of the store in `dir`, which no server may be using.
///
/// # Errors
///
/// Those of opening the directory (see [`super::Server::start`]), and [`Error::Transfer`].
pub fn export_dir(dir: &Path, out: impl Write) -> Result<Exported, Error> {
    let (store, writer) = Store::open(dir)?;
    let exported = export(&store, out).map_err(|source| Error::Transfer { source });
    store.stop_writer_now();
    // The directory is free for others once its thread has ended.
    let _ = writer.join();
    exported
}

fn export(store: &Store, mut out: impl Write) -> std::io::Result<Exported> {
    let (revision, versions) = store.read(|state| {
        let all = KeyRange::new(&[0], &[0]);
        (state.visible(), state.range(&all, state.visible(), 0).versions)
    });
    write_head(&mut out, revision)?;
    let mut keys = 0;
    for version in versions {
        let entry = Exportable {
            key: &version.key,
            value: &version.value,
            created: version.created,
            modified: version.modified,
            leased: version.lease != 0,
        };
        write_entry(&mut out, &entry)?;
        keys += 1;
    }
    out.flush()?;
    Ok(Exported { keys, revision })
}

//! The command line and the control API as users see them: help, listings, JSON, errors, exit codes.
//!
//! Expected texts lie in `tests/golden/`. `SKYBRIDGE_UPDATE_GOLDEN=1 cargo test --test cli_golden`
//! writes them anew; read the difference before you keep it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "cli_golden/api.rs"]
mod api;
#[path = "cli_golden/binary.rs"]
mod binary;
#[path = "cli_golden/fake.rs"]
mod fake;
#[path = "cli_golden/listings.rs"]
mod listings;
#[path = "cli_golden/samples.rs"]
mod samples;

use std::path::PathBuf;

/// Compares `text` with the file `name` below `tests/golden/`.
#[track_caller]
fn golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("SKYBRIDGE_UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == text,
        "{} differs; SKYBRIDGE_UPDATE_GOLDEN=1 writes it anew\n--- expected\n{expected}\n--- now\n{text}",
        path.display()
    );
}

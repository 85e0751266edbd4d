//! `cargo xtask openapi`: the document of what the server mounts, kept in the repository so that a change of the
//! surface is seen in its diff.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail};

/// Writes the document.
pub(crate) fn write() -> anyhow::Result<()> {
    let path = path();
    fs::write(&path, tollkey_server::openapi::json())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Compares the kept document with what the server would say now.
pub(crate) fn check() -> anyhow::Result<()> {
    let path = path();
    let kept =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let now = tollkey_server::openapi::json();
    if kept == now {
        return Ok(());
    }
    let line = kept
        .lines()
        .zip(now.lines())
        .take_while(|(kept, now)| kept == now)
        .count()
        + 1;
    bail!(
        "openapi/tollkey.json is not what the server mounts, from line {line} on; run: cargo xtask openapi"
    )
}

fn path() -> PathBuf {
    crate::root().join("openapi/tollkey.json")
}

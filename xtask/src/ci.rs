//! `cargo xtask ci`: runs `.ci/run`.

use std::process::Command;

use anyhow::{Context as _, ensure};

pub(crate) fn run() -> anyhow::Result<()> {
    let script = crate::root().join(".ci/run");
    let status = Command::new(&script)
        .status()
        .with_context(|| format!("cannot run {}", script.display()))?;
    ensure!(status.success(), "the checks failed");
    Ok(())
}

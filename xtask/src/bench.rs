//! `cargo xtask bench` and `cargo xtask generate`: run the crate `bench`, which the other tasks do not compile.

use std::{env, process::Command};

use anyhow::{Context as _, ensure};

pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // In the current directory, because the URL of a database can be relative.
    let status = Command::new(cargo)
        .args(["run", "--quiet", "--package", "tollkey-bench"])
        .arg("--manifest-path")
        .arg(crate::root().join("Cargo.toml"))
        .arg("--")
        .args(arguments)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "tollkey-bench failed");
    Ok(())
}

//! Generates files from the server's code. They are committed, so that a diff shows how a change affects them.

use std::fs;

use anyhow::{Context as _, bail};

pub(crate) struct Generated {
    path: &'static str,
    /// The `cargo xtask` command that writes it.
    command: &'static str,
    content: fn() -> String,
}

pub(crate) const OPENAPI: Generated = Generated {
    path: "openapi/tollkey.json",
    command: "openapi",
    content: || tollkey_server::openapi::json().to_owned(),
};

pub(crate) const SETTINGS: Generated = Generated {
    path: "docs/settings.md",
    command: "settings",
    content: tollkey_server::config::markdown,
};

pub(crate) const CONFIGURATION: Generated = Generated {
    path: "deploy/debian/tollkey.toml",
    command: "settings",
    content: tollkey_server::config::configuration_file,
};

impl Generated {
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        fs::write(crate::root().join(self.path), (self.content)())
            .with_context(|| format!("cannot write {}", self.path))
    }

    /// Returns an error if the file differs from the generated content.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let committed = fs::read_to_string(crate::root().join(self.path))
            .with_context(|| format!("cannot read {}", self.path))?;
        let current = (self.content)();
        if committed == current {
            return Ok(());
        }
        let pairs = committed.lines().zip(current.lines());
        let line = pairs.take_while(|(old, new)| old == new).count() + 1;
        let Self { path, command, .. } = self;
        bail!("{path} is out of date from line {line}; run: cargo xtask {command}")
    }
}

//! `tollkey completions`

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, output};
use crate::config::Options;

/// The shell whose completions are printed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The name of the shell.
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    output::line(completions(arguments.shell).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the script that completes commands and flags in a shell.
#[must_use]
pub fn completions(shell: Shell) -> String {
    let mut command = Options::add_documented_to(Cli::command());
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "tollkey", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

//! Prints the output of commands. `println!` and `eprintln!` panic on a closed pipe (`tollkey openapi | head`).

use std::{
    fmt::Display,
    io::{self, Write as _},
};

use anyhow::Context as _;

/// A closed pipe is not an error.
pub(super) fn line(text: impl Display) -> anyhow::Result<()> {
    match write(format_args!("{text}\n")) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to stdout"),
    }
}

/// For a line that is shown only once, such as a new key: a closed pipe is an error.
pub(super) fn only_once(text: impl Display) -> anyhow::Result<()> {
    write(format_args!("{text}\n")).context("cannot write to stdout")
}

/// Prints a line about the command to stderr, so that stdout has only its result.
pub(super) fn note(text: impl Display) {
    // Fails only if the pipe is closed.
    let _ = writeln!(io::stderr(), "{text}");
}

fn write(text: std::fmt::Arguments<'_>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_fmt(text)?;
    stdout.flush()
}

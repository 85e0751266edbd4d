//! What commands print. `println!` and `eprintln!` panic when the reader has gone, as in `tollkey openapi | head`.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

use anyhow::Context as _;

/// Prints a line to stdout. A reader that has gone is no error: the exit code still tells how the command ended.
///
/// # Errors
/// When the line cannot be written for another reason, such as a full disk.
pub(super) fn line(text: impl Display) -> anyhow::Result<()> {
    match write(format_args!("{text}\n")) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to stdout"),
    }
}

/// Prints a line to stdout that is not shown again, a new key for instance.
///
/// # Errors
/// When the line cannot be written, also because its reader has gone.
pub(super) fn only_once(text: impl Display) -> anyhow::Result<()> {
    write(format_args!("{text}\n")).context("cannot write to stdout")
}

/// Prints a line to stderr that says what the command works with or does, so that stdout has its result alone.
pub(super) fn note(text: impl Display) {
    // Without a reader there is nothing to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

fn write(text: std::fmt::Arguments<'_>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_fmt(text)?;
    stdout.flush()
}

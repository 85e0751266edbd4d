//! Tasks of this repository: `cargo xtask <task>`.
#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
mod bench;
mod chaos;
mod ci;
mod generate;
mod generated;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

const USAGE: &str = "\
Tasks: cargo xtask <task>

  openapi          write openapi/tollkey.json from the mounted routes
  settings         write docs/settings.md from the declarations of the settings
                   [--check] compares instead, and exits with 1 if the file is out of date (both)
  bench http       measure forward authentication next to nginx (Linux; builds a release first)
  bench dashboard  measure the pages of an account with ten thousand keys next to those of one with a hundred (likewise)
  bench descendants
                   measure whether revocations depend on the number of descendants (likewise; a quarter of an hour)
  bench guard      measure an app with and without our middleware, in axum and actix (likewise)
  bench keys       measure a database of ten million keys next to one of ten thousand (likewise; a quarter of an hour and
                   12 GB of disk; --keys N for fewer)
  generate --keys N [--accounts M] DATABASE_URL
                   fill a migrated, empty database with reproducible keys, for measurements
  bench revoke     measure how long a revocation takes until it holds on every replica (likewise; with PostgreSQL)
  chaos            the fault test over real processes, in its long form: 1000 revocations on each database, or
                   [--revocations N] [--minutes N]; [--seed N] repeats a schedule
  ci               run .ci/run: every check that a change must pass";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        ["openapi"] => generated::OPENAPI.write(),
        ["openapi", "--check"] => generated::OPENAPI.check(),
        ["settings"] => generated::SETTINGS.write(),
        ["settings", "--check"] => generated::SETTINGS.check(),
        #[cfg(target_os = "linux")]
        ["bench", "http"] => bench::http::run(),
        #[cfg(target_os = "linux")]
        ["bench", "dashboard"] => bench::dashboard::run(),
        #[cfg(target_os = "linux")]
        ["bench", "descendants"] => bench::descendants::run(),
        #[cfg(target_os = "linux")]
        ["bench", "guard", more @ ..] => bench::guard::run(more),
        #[cfg(target_os = "linux")]
        ["bench", "keys", more @ ..] => bench::keys::run(more),
        ["generate", more @ ..] => generate::run(more),
        ["bench", "revoke"] => bench::revoke::run(),
        ["chaos", more @ ..] => chaos::run(more),
        ["ci"] => ci::run(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the repository, independent of the current directory.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(1)
        .unwrap_or(Path::new("."))
        .to_owned()
}

//! Tasks of this repository: `cargo xtask <task>`.
#![forbid(unsafe_code)]

mod bench;
mod chaos;
mod ci;
mod generated;
mod package_files;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

const USAGE: &str = "\
Tasks: cargo xtask <task>

  openapi [--check]
                   write openapi/tollkey.json from the mounted routes
  settings [--check]
                   write docs/settings.md and deploy/debian/tollkey.toml from the declarations of the settings
                   (--check only compares, and exits with 1 if the file is out of date)
  package-files    write shell completions and man pages to deploy/debian/generated
  deb [OPTIONS]    write them, and build the Debian package with cargo-deb, which receives the options
  generate --keys N [--accounts M] DATABASE_URL
                   fill a migrated, empty database with reproducible keys, for measurements
  chaos [--revocations N] [--minutes N] [--seed N]
                   run the long form of the fault test with real processes; without --revocations and --minutes,
                   1,000 revocations on each database; --seed repeats a schedule
  ci               run .ci/run: every check that a change must pass

Benchmarks run on Linux only, and build the server in release mode first:

  bench http       compare forward authentication with nginx, POST /verify with it, a Unix socket with TCP, and a
                   million keys with a thousand (takes about 8 minutes)
  bench dashboard  compare the pages of an account with 10,000 keys to those of an account with 100
  bench descendants
                   measure whether revocations depend on the number of descendants (takes about 15 minutes)
  bench grpc       compare Envoy's ext_authz over gRPC to ext_authz over HTTP
  bench guard      compare an app with and without our middleware, in axum and actix
  bench keys [--keys N]
                   compare a database of ten million keys, or N, with one of ten thousand (takes about 15 minutes and
                   12 GB of disk space)
  bench revoke     measure how long a revocation takes until it has propagated to every replica (needs PostgreSQL)";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        ["openapi"] => generated::OPENAPI.write(),
        ["openapi", "--check"] => generated::OPENAPI.check(),
        ["settings"] => generated::SETTINGS
            .write()
            .and_then(|()| generated::CONFIGURATION.write()),
        ["settings", "--check"] => generated::SETTINGS
            .check()
            .and_then(|()| generated::CONFIGURATION.check()),
        ["package-files"] => package_files::write(),
        ["deb", more @ ..] => package_files::deb(more),
        ["bench", benchmark @ ..] if !benchmark.is_empty() => bench::run(benchmark),
        ["generate", ..] => bench::run(&arguments),
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

/// Returns the root of the repository, independent of the current directory.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(1)
        .unwrap_or(Path::new("."))
        .to_owned()
}

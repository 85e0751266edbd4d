//! The benchmarks of `cargo xtask bench <name>`, which need more than one process, and `cargo xtask generate`. They print
//! results and have no limits that could fail, because the results depend on the load of the machine.
#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
mod dashboard;
#[cfg(target_os = "linux")]
mod descendants;
mod generate;
#[cfg(target_os = "linux")]
mod grpc;
#[cfg(target_os = "linux")]
mod guard;
#[cfg(target_os = "linux")]
mod http;
#[cfg(target_os = "linux")]
mod keys;
#[cfg(target_os = "linux")]
mod load;
#[cfg(target_os = "linux")]
mod revoke;
#[cfg(target_os = "linux")]
mod servers;

#[cfg(target_os = "linux")]
use std::path::{Path, PathBuf};
use std::{env, process::ExitCode};

use anyhow::bail;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tollkey-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> anyhow::Result<()> {
    match arguments {
        ["generate", more @ ..] => generate::run(more),
        #[cfg(target_os = "linux")]
        ["http"] => http::run(),
        #[cfg(target_os = "linux")]
        ["dashboard"] => dashboard::run(),
        #[cfg(target_os = "linux")]
        ["descendants"] => descendants::run(),
        #[cfg(target_os = "linux")]
        ["grpc"] => grpc::run(),
        #[cfg(target_os = "linux")]
        ["guard", more @ ..] => guard::run(more),
        #[cfg(target_os = "linux")]
        ["keys", more @ ..] => keys::run(more),
        #[cfg(target_os = "linux")]
        ["revoke"] => revoke::run(),
        other if cfg!(target_os = "linux") => {
            bail!("unknown benchmark {other:?}; `cargo xtask` lists them")
        }
        _ => bail!("benchmarks run on Linux only"),
    }
}

#[cfg(target_os = "linux")]
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Returns the root of the repository, independent of the current directory.
#[cfg(target_os = "linux")]
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(1)
        .unwrap_or(Path::new("."))
        .to_owned()
}

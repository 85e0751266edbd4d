//! The binary `tollkey`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    tollkey_server::cli::run()
}

//! `tollkey openapi`

use std::process::ExitCode;

pub(super) fn run() -> anyhow::Result<ExitCode> {
    print!("{}", crate::openapi::json());
    Ok(ExitCode::SUCCESS)
}

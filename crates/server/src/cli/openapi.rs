//! `tollkey openapi`

use std::process::ExitCode;

use super::output;

pub(super) fn run() -> anyhow::Result<ExitCode> {
    let json = crate::openapi::json();
    output::line(json.strip_suffix('\n').unwrap_or(json))?;
    Ok(ExitCode::SUCCESS)
}

//! The binary `tollkey`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// A request makes some dozens of small allocations, most of them in the web framework, and frees them a few
/// microseconds later.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tollkey_server::cli::run()
}

//! The binary `tollkey`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// A request causes dozens of small allocations, most of them in the web framework, and frees them microseconds later.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tollkey_server::cli::run()
}

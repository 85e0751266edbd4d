//! The binary `tollkey`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// mimalloc, because each request makes dozens of small, short-lived allocations, most of them in the web framework.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tollkey_server::cli::run()
}

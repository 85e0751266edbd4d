//! The README's commands do what it says.

use std::{path::Path, process::Stdio};

use tokio::process::Command;

use crate::binary::Tollkey;

/// What stands before a block that is to be run.
const RUN: &str = "<!-- run -->";
/// Where the README's server listens.
const SERVER: &str = "http://127.0.0.1:8080";
/// How the README calls the binary.
const BINARY: &str = "cargo run --release --quiet --";

/// The blocks that are to be run, in their order.
fn blocks(readme: &str) -> Vec<&str> {
    let marked = readme.split(RUN).skip(1);
    let blocks = marked.map(|rest| {
        rest.trim_start()
            .strip_prefix("```sh\n")
            .and_then(|rest| rest.split_once("\n```"))
    });
    blocks
        .map(|block| block.expect("a shell block follows the mark").0)
        .collect()
}

#[actix_web::test]
async fn its_shell_blocks_run() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(readme).expect("the README");
    let blocks = blocks(&readme);
    assert!(!blocks.is_empty());
    let tollkey = Tollkey::development();
    let server = tollkey.serve().await;
    let script = blocks.join("\n");
    assert!(
        script.contains(SERVER) && script.contains(BINARY),
        "the README calls them otherwise now:\n{script}"
    );
    let script = script
        .replace(SERVER, &format!("http://{}", server.address))
        .replace(BINARY, &format!("'{}'", env!("CARGO_BIN_EXE_tollkey")));
    let run = Command::new("bash")
        .args(["-c", &format!("set -euo pipefail\n{script}")])
        .env_clear()
        .envs(Tollkey::bare().environment())
        .current_dir(tollkey.directory())
        .stdin(Stdio::null())
        .output()
        .await
        .expect("bash");
    let (stdout, stderr) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    assert!(run.status.success(), "{}\n{stdout}\n{stderr}", run.status);

    // What it says that these commands print, in this order.
    let mut lines = stdout.lines();
    for said in ["200", "204", "401", r#"{"valid":false,"code":"revoked"}"#] {
        assert!(
            readme.contains(&format!("`{said}`")),
            "the README no longer says {said}"
        );
        assert!(
            lines.any(|line| line == said),
            "no {said} in its place:\n{stdout}\n{stderr}"
        );
    }
    assert!(
        stdout.contains(r#""family":"application""#),
        "what the key is:\n{stdout}"
    );
    server.stop().await;
}

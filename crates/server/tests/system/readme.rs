//! Runs the shell blocks of the README and the quick start; `links` checks the links of the documentation.

use std::{path::Path, process::Stdio};

use tokio::process::Command;

use crate::binary::Tollkey;

mod links;

/// The line before a block to run.
const RUN: &str = "<!-- run -->";
/// The server's URL in the documentation.
const SERVER: &str = "http://127.0.0.1:8080";
/// The binary's command in the documentation.
const BINARY: &str = "cargo run --release --quiet --";

/// Returns the blocks of a page to run, in their order.
fn blocks(page: &str) -> Vec<&str> {
    let marked = page.split(RUN).skip(1);
    let blocks = marked.map(|rest| {
        rest.trim_start()
            .strip_prefix("```sh\n")
            .and_then(|rest| rest.split_once("\n```"))
    });
    blocks
        .map(|block| block.expect("a shell block follows the mark").0)
        .collect()
}

/// Runs the marked blocks of a page against a new server, and returns the page and what the blocks print.
async fn run_blocks(path: &str) -> (String, String) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path);
    let page = std::fs::read_to_string(page).expect("a page");
    let blocks = blocks(&page);
    assert!(!blocks.is_empty());
    let tollkey = Tollkey::development();
    let server = tollkey.serve().await;
    let script = blocks.join("\n");
    assert!(
        script.contains(SERVER) && script.contains(BINARY),
        "{path} has another URL or command now:\n{script}"
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
    let stdout = stdout.into_owned();
    server.stop().await;
    (page, stdout)
}

/// Asserts that the page has these results, and that its blocks print them in this order: as whole
/// lines, or as a part of a line if they begin with a quotation mark.
fn assert_prints(page: &str, stdout: &str, results: &[&str]) {
    let mut lines = stdout.lines();
    for result in results {
        assert!(
            page.contains(&format!("`{result}`")),
            "the page no longer mentions {result}"
        );
        assert!(
            lines.any(|line| line == *result || result.starts_with('"') && line.contains(result)),
            "{result} is not printed in this order:\n{stdout}"
        );
    }
}

#[actix_web::test]
async fn shell_blocks_of_the_readme_run() {
    let (page, stdout) = run_blocks("README.md").await;
    let results = ["200", "204", "401", r#"{"valid":false,"code":"revoked"}"#];
    assert_prints(&page, &stdout, &results);
    assert!(
        stdout.contains(r#""family":"application""#),
        "the record of the key:\n{stdout}"
    );
}

#[actix_web::test]
async fn shell_blocks_of_the_quick_start_run() {
    let (page, stdout) = run_blocks("docs/quick-start.md").await;
    let results = [
        r#""valid":true"#,
        r#""code":"insufficient_scope""#,
        r#"{"valid":false,"code":"revoked"}"#,
    ];
    assert_prints(&page, &stdout, &results);
}

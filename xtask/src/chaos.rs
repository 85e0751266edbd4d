//! `cargo xtask chaos`: runs the long form of the fault test with real processes. `crates/server/tests/system/chaos.rs`
//! describes the test, and `cargo test` runs its short form.

use std::{env, process::Command};

use anyhow::{Context as _, bail, ensure};

/// The default number of revocations for each backend.
const REVOCATIONS: u64 = 1000;

pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "test",
        "--package",
        "tollkey-server",
        "--test",
        "system",
        "chaos::",
        "--",
        "--test-threads",
        "1",
    ]);
    command
        .env("TOLLKEY_TEST_REQUIRE_POSTGRES", "1")
        .current_dir(crate::root());
    for (name, value) in variables(arguments)? {
        command.env(name, value.to_string());
    }
    ensure!(
        command.status().context("cannot run cargo")?.success(),
        "the fault test failed"
    );
    Ok(())
}

fn variables(arguments: &[&str]) -> anyhow::Result<Vec<(&'static str, u64)>> {
    let mut variables = Vec::new();
    let pairs = arguments.chunks_exact(2);
    ensure!(
        pairs.remainder().is_empty(),
        "{:?} needs a number",
        pairs.remainder()[0]
    );
    for pair in pairs {
        let number: u64 = pair[1]
            .parse()
            .with_context(|| format!("{} needs a number, not {:?}", pair[0], pair[1]))?;
        variables.push(match pair[0] {
            "--revocations" => ("TOLLKEY_CHAOS_REVOCATIONS", number),
            "--minutes" => {
                ensure!(
                    number <= 50,
                    "--minutes must be at most 50, because the tokens of the test expire after an hour"
                );
                ("TOLLKEY_CHAOS_SECONDS", number * 60)
            }
            "--seed" => ("TOLLKEY_CHAOS_SEED", number),
            other => bail!("unknown argument {other}; use --revocations, --minutes or --seed"),
        });
    }
    if !variables
        .iter()
        .any(|(name, _)| matches!(*name, "TOLLKEY_CHAOS_REVOCATIONS" | "TOLLKEY_CHAOS_SECONDS"))
    {
        variables.push(("TOLLKEY_CHAOS_REVOCATIONS", REVOCATIONS));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_environment_variables() {
        assert_eq!(
            variables(&[]).unwrap(),
            [("TOLLKEY_CHAOS_REVOCATIONS", 1000)]
        );
        assert_eq!(
            variables(&["--seed", "7", "--minutes", "2"]).unwrap(),
            [("TOLLKEY_CHAOS_SEED", 7), ("TOLLKEY_CHAOS_SECONDS", 120)]
        );
        for wrong in [
            &["--seed"][..],
            &["--seed", "x"],
            &["--hours", "1"],
            &["--minutes", "51"],
        ] {
            assert!(variables(wrong).is_err(), "{wrong:?}");
        }
    }
}

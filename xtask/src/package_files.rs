//! Generates the completions and man pages of packages from the command line of the server, and builds the Debian
//! package with them.

use std::{env, fs, path::Path, process::Command};

use anyhow::{Context as _, bail, ensure};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Inline, Roff, bold, italic, roman},
};
use tollkey_server::{
    cli,
    config::{CONFIG, SETTINGS, Setting},
};

/// The version of cargo-deb with which the package is tested.
const CARGO_DEB: &str = "3.8.0";
const SERVER: &str = "tollkey-server";
/// The features of the server in packages.
const FEATURES: &str = "pg-tls,grpc";

/// Where the metadata of the package expects the files.
const DIRECTORY: &str = "deploy/debian/generated";

const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "tollkey.bash"),
    (Shell::Zsh, "_tollkey"),
    (Shell::Fish, "tollkey.fish"),
];

/// Writes completions and man pages to [`DIRECTORY`].
pub(crate) fn write() -> anyhow::Result<()> {
    let directory = crate::root().join(DIRECTORY);
    if directory.exists() {
        // Files of commands that no longer exist.
        fs::remove_dir_all(&directory).with_context(|| format!("cannot delete {DIRECTORY}"))?;
    }
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {DIRECTORY}"))?;
    for (shell, name) in COMPLETIONS {
        write_file(&directory.join(name), cli::completions(shell).as_bytes())?;
    }
    let command = cli::command();
    write_file(&directory.join("tollkey.1"), &main_page(&command)?)?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    for subcommand in command.get_subcommands() {
        write_pages(subcommand, &directory)?;
    }
    Ok(())
}

/// Builds the Debian package. `options` are those of cargo-deb; with `--no-build`, the server has already been built.
pub(crate) fn deb(options: &[&str]) -> anyhow::Result<()> {
    write()?;
    if !options.contains(&"--no-build") {
        // cargo-deb would build every program of the workspace.
        let built = cargo()
            .args(["build", "--release", "--locked", "--package", SERVER])
            .args(["--features", FEATURES])
            .status()
            .context("cannot run cargo")?;
        ensure!(built.success(), "the server does not build");
    }
    let status = cargo()
        .args(["deb", "--package", SERVER, "--locked", "--no-build"])
        .args(options.iter().filter(|option| **option != "--no-build"))
        .status()
        .context("cannot run cargo")?;
    // 101 is the status of cargo itself, among others if the subcommand does not exist.
    if status.code() == Some(101) {
        bail!(
            "cargo deb failed; if it is not installed, run: cargo install cargo-deb --version {CARGO_DEB} --locked"
        );
    }
    ensure!(status.success(), "cargo deb failed");
    Ok(())
}

fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::root());
    command
}

fn write_file(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes the page of a subcommand, and the pages of its own subcommands.
fn write_pages(command: &clap::Command, directory: &Path) -> anyhow::Result<()> {
    for subcommand in command.get_subcommands() {
        write_pages(subcommand, directory)?;
    }
    let man = Man::new(command.clone()).manual("Tollkey");
    let path = directory.join(man.get_filename());
    let mut page = Vec::new();
    man.render(&mut page)?;
    write_file(&path, &page)
}

/// Returns the page of the program itself, which lists the settings.
fn main_page(command: &clap::Command) -> anyhow::Result<Vec<u8>> {
    let man = Man::new(command.clone().disable_help_subcommand(true)).manual("Tollkey");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_subcommands_section(&mut page)?;
    man.render_options_section(&mut page)?;
    settings().to_writer(&mut page)?;
    files().to_writer(&mut page)?;
    man.render_version_section(&mut page)?;
    Ok(page)
}

fn settings() -> Roff {
    let mut page = Roff::new();
    page.control("SH", ["SETTINGS"]);
    page.text([roman(
        "Settings are accepted before and after every command. Each is a flag, an environment variable and a field of \
         the configuration file; the first in this order takes precedence. The field has the name of the variable in \
         lower case, without TOLLKEY_. A secret has no flag.",
    )]);
    let mut heading = "";
    for setting in SETTINGS.iter().chain([&*CONFIG]) {
        if heading != setting.heading {
            heading = &setting.heading;
            page.control("SS", [heading]);
        }
        page.control("TP", []);
        page.text(names(setting));
        page.text([roman(format!("{}.", setting.help.replace('`', "")))]);
    }
    page
}

/// Returns the flag, the variable, the kind of value and the default of a setting.
fn names(setting: &Setting) -> Vec<Inline> {
    let mut names = Vec::new();
    if let Some(flag) = &setting.flag {
        names.extend([
            bold(format!("--{flag}")),
            roman(" "),
            italic(setting.value_name.as_str()),
            roman(", "),
        ]);
    }
    names.push(bold(setting.env.as_str()));
    if let Some(default) = &setting.default {
        names.push(roman(format!(" [default: {default}]")));
    }
    names
}

fn files() -> Roff {
    let mut page = Roff::new();
    page.control("SH", ["FILES"]);
    for (path, text) in [
        (
            "tollkey.toml",
            "The configuration file, in the working directory.",
        ),
        (
            "/etc/tollkey/tollkey.toml",
            "The configuration file if the working directory has none. The Debian package installs it with all settings \
             as comments.",
        ),
        (
            "/var/lib/tollkey",
            "The database of the service that the Debian package installs.",
        ),
    ] {
        page.control("TP", []);
        page.text([italic(path)]);
        page.text([roman(text)]);
    }
    page
}

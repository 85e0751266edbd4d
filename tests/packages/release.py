"""Checks the workflows, and runs the parts of a release that need no forge: notes and bill of materials."""

import json
import os
import re
import shutil
import subprocess
import tomllib

import pypi
from environment import CACHE, ROOT, Failed, fresh
from environment import run as execute

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
NOTES = ROOT / ".ci" / "release-notes"
TOOLS = CACHE / "tools"


def run():
    """Tests what a release consists of; see the module."""
    workflows()
    notes()
    bill_of_materials()


def workflows():
    """Compares the workflows with their schema, and looks for known security problems."""
    programs = pypi.installed("release") / "bin"
    execute(programs / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)
    execute(programs / "zizmor", "--offline", "--quiet", "--config", ROOT / ".github" / "zizmor.yml", *WORKFLOWS)


def notes():
    """The notes are the whole section of the version; other versions, and versions with an empty section, have none."""
    with open(ROOT / "Cargo.toml", "rb") as manifest:
        version = tomllib.load(manifest)["workspace"]["package"]["version"]
    sections = re.split(r"(?m)^(?=## )", (ROOT / "CHANGELOG.md").read_text())
    expected = [section.partition("\n")[2].strip() for section in sections if section.startswith(f"## [{version}]")]
    text = execute(NOTES, version, quiet=True).strip()
    if expected != [text]:
        raise Failed(f"the notes of {version} are not its section of CHANGELOG.md: {text[:200]}")
    rejected("99.0.0", f"version 99.0.0 is not the version of the crates, {version}")
    rejected("", "usage: .ci/release-notes VERSION")

    copy = fresh(CACHE / "release-notes")
    (copy / ".ci").mkdir(parents=True)
    shutil.copy(NOTES, copy / ".ci")
    (copy / "Cargo.toml").write_text('[workspace.package]\nversion = "2.0.0"\n')
    script = copy / ".ci" / NOTES.name
    missing = 'CHANGELOG.md has no section "## [2.0.0]", or it is empty'
    for changelog in ("## [2.0.0-rc.1]\n\nX\n", "## [2.0.0] - 2030-01-02\n\n## [1.0.0]\n\nX\n", "## 2.0.0\n\nX\n"):
        (copy / "CHANGELOG.md").write_text(changelog)
        rejected("2.0.0", missing, script)
    (copy / "CHANGELOG.md").write_text("# Changelog\n\n## [2.0.0] - 2030-01-02\n\n### Added\n\n- X\n\n## [1.0.0]\n\nY\n")
    if execute(script, "2.0.0", quiet=True) != "### Added\n\n- X\n":
        raise Failed("the notes of a version with a date are not its section")


def rejected(version, message, script=NOTES):
    """Fails unless the script rejects this version with this message."""
    done = subprocess.run([script, *version.split()], capture_output=True, text=True, check=False)
    if done.returncode == 0 or done.stdout or message not in done.stderr:
        raise Failed(f"the notes of {version!r}: expected {message!r}, and status {done.returncode}: {done.stderr}")


def bill_of_materials():
    """The bill of materials that the release workflow writes names every crate in the binary, with its license."""
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    version = re.search(r"cargo-cyclonedx@([\d.]+)", workflow)[1]
    execute("cargo", "install", "--quiet", "--locked", "--root", TOOLS, f"cargo-cyclonedx@{version}")
    directory = fresh(CACHE / "bill-of-materials")
    directory.mkdir(parents=True)
    execute("git", "archive", "--output", directory / "source.tar", "HEAD", cwd=ROOT)
    execute("tar", "--extract", "--file", "source.tar", cwd=directory)
    step = re.search(r"cargo cyclonedx (?:.*\\\n)*.*", workflow)[0]
    execute("bash", "-euc", step, cwd=directory, env={
        "PATH": f"{TOOLS / 'bin'}{os.pathsep}{os.environ['PATH']}", "FEATURES": "pg-tls,grpc", "VERSION": "0",
        "ARCHITECTURE": "test",
    })
    components = json.loads((directory / "crates/server/sbom.json").read_text())["components"]
    names = {component["name"] for component in components}
    absent = {"actix-web", "diesel", "openssl-src", "tollkey-core", "tonic"} - names
    if absent:
        raise Failed(f"the bill of materials has no {', '.join(sorted(absent))}")
    unlicensed = sorted(component["name"] for component in components if not component.get("licenses"))
    if unlicensed:
        raise Failed(f"these components have no license: {', '.join(unlicensed)}")
    print(f"{len(components)} components", flush=True)

"""Checks the workflows, and runs the parts of a release that need no forge: notes and bill of materials."""

import json
import os
import re
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
    """The notes are the section of the version, and a version without a section has none."""
    with open(ROOT / "Cargo.toml", "rb") as manifest:
        version = tomllib.load(manifest)["workspace"]["package"]["version"]
    text = execute(NOTES, version, quiet=True)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    if text.strip() not in changelog or re.search(r"(?m)^## ", text):
        raise Failed(f"the notes of {version} are not its section of CHANGELOG.md: {text[:200]}")
    try:
        execute(NOTES, "99.0.0", quiet=True)
    except Failed:
        return
    raise Failed("a version that the crates do not have has notes")


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

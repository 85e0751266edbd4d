"""Packages every crate as it would be published, builds the packages from each other, and installs the server.

Needs the registry of crates, with which cargo compares the dependencies, and a checkout without changes.
"""

import re
import tarfile
import tomllib

from debian import documented
from environment import CACHE, ROOT, TARGET, Failed, fresh
from environment import run as execute

#: The crates of `crates` that are not published.
UNPUBLISHED = {"tollkey-model", "tollkey-pages"}
#: The largest package, in bytes.
LIMIT = 500_000
#: Files that every package contains.
REQUIRED = {"Cargo.toml", "Cargo.lock", "LICENSE-APACHE", "LICENSE-MIT", "README.md", "src/lib.rs"}
#: What no package contains: files of tests, databases and secrets.
UNWANTED = re.compile(r"(^|/)(tests|benches|vectors|target|proptest-regressions|\.env|[^/]*\.(db|pem|key|jwt-secret))(/|$)")
#: What cargo must know about a published crate.
METADATA = ("description", "license", "readme", "keywords", "categories", "rust-version")
#: An option of SQLite that `.cargo/config.toml` sets, as the program contains it.
SQLITE_OPTION = b"ENABLE_QPSG"


def run():
    """Tests the packages; see the module."""
    target = fresh(CACHE / "publish")
    # Builds each package with the packages that it depends on, not with the directories of this checkout.
    execute("cargo", "publish", "--workspace", "--dry-run", "--locked", cwd=ROOT, env={"CARGO_TARGET_DIR": target})
    # A dry run of several packages leaves them in a directory inside.
    packages = {path.name.rpartition("-")[0]: path for path in (target / "package").rglob("*.crate")}
    if packages.keys() != published():
        raise Failed(f"cargo has packaged {', '.join(sorted(packages))} instead of {', '.join(sorted(published()))}")
    for _, package in sorted(packages.items()):
        check(package)
    install()


def published():
    """The names of the crates that are published: all of `crates`, and nothing outside it."""
    manifests = (tomllib.loads(path.read_text()) for path in ROOT.glob("crates/*/Cargo.toml"))
    return {manifest["package"]["name"] for manifest in manifests} - UNPUBLISHED


def check(package):
    """Checks what a package contains, what its manifest says, and its size."""
    with tarfile.open(package) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        manifest = tomllib.loads(archive.extractfile(f"{package.stem}/Cargo.toml").read().decode())
    size = package.stat().st_size
    print(f"{package.name:36} {len(names):4} files {size / 1000:7.1f} kB", flush=True)
    missing = sorted(REQUIRED - names) + [field for field in METADATA if not manifest["package"].get(field)]
    if missing:
        raise Failed(f"{package.name} has no {', '.join(missing)}")
    unwanted = sorted(name for name in names if UNWANTED.search(name))
    if unwanted:
        raise Failed(f"{package.name} contains {unwanted[0]}")
    if size > LIMIT:
        raise Failed(f"{package.name} has {size} bytes, more than {LIMIT}")


def install():
    """The command of the documentation installs a program that runs, with SQLite built as in the workspace."""
    root = fresh(CACHE / "installed")
    execute("sh", "-euc", documented("installing.md", "cargo-install"), cwd=ROOT,
            env={"CARGO_INSTALL_ROOT": root, "CARGO_TARGET_DIR": TARGET})
    program = root / "bin" / "tollkey"
    if not execute(program, "--version", quiet=True).startswith("tollkey "):
        raise Failed("the installed program does not print its version")
    if SQLITE_OPTION not in program.read_bytes():
        raise Failed(f"SQLite was built without {SQLITE_OPTION.decode()}; does cargo read .cargo/config.toml?")

"""Packages every crate as it would be published, and builds the packages from each other.

Needs the registry of crates, with which cargo compares the dependencies.
"""

import tarfile

from environment import CACHE, ROOT, Failed, fresh
from environment import run as execute

#: The largest package, in bytes.
LIMIT = 1_000_000
#: Files of which the license and cargo ask that they are in a package.
REQUIRED = ("Cargo.toml", "LICENSE-APACHE", "LICENSE-MIT", "README.md")
#: Directories of a crate that are not part of its package.
EXCLUDED = ("tests/", "target/")


def run():
    """Tests the packages; see the module."""
    target = fresh(CACHE / "publish")
    # Builds each package with the packages that it depends on, not with the directories of this checkout.
    execute("cargo", "publish", "--workspace", "--dry-run", "--locked", cwd=ROOT, env={"CARGO_TARGET_DIR": target})
    packages = sorted((target / "package").glob("*.crate"))
    if not packages:
        raise Failed("cargo has written no packages")
    for package in packages:
        check(package)


def check(package):
    """Checks what a package contains, and its size."""
    with tarfile.open(package) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    size = package.stat().st_size
    print(f"{package.name:36} {len(names):4} files {size / 1000:7.1f} kB", flush=True)
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise Failed(f"{package.name} has no {', '.join(missing)}")
    unwanted = sorted(name for name in names if name.startswith(EXCLUDED))
    if unwanted:
        raise Failed(f"{package.name} contains {unwanted[0]}")
    if size > LIMIT:
        raise Failed(f"{package.name} has {size} bytes, more than {LIMIT}")

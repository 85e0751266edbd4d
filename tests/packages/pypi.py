"""Installs packages of PyPI that `requirements` pins by hash."""

import hashlib
import sys

from environment import CACHE, HERE, Failed, Missing, fresh, run


def installed(name, *options):
    """Returns a virtual environment with the packages of `requirements/NAME.txt`, installed once for each content."""
    if sys.version_info < (3, 11):
        raise Missing(f"Python {sys.version.split()[0]} is older than 3.11")
    requirements = HERE / "requirements" / f"{name}.txt"
    directory = CACHE / "python" / name
    stamp = directory / ".sha256"
    content = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not (stamp.exists() and stamp.read_text() == content):
        fresh(directory)
        try:
            run(sys.executable, "-m", "venv", directory, quiet=True)
        except Failed as error:
            raise Missing("python3-venv is not installed") from error
        run(directory / "bin" / "python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--only-binary", ":all:", "--require-hashes", *options, "--requirement", requirements, quiet=True)
        stamp.write_text(content)
    return directory

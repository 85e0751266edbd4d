"""Creates directories with a minimal Debian bookworm, and runs commands in them."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import CACHE, ROOT, Failed, Missing, fresh, program, run

SUITE = "bookworm"
#: How many seconds a container may take to boot, and to shut down.
BOOT_LIMIT = 120
ROOTS = CACHE / "roots"
#: What a command in a root receives of the environment of the tests.
PASSED_ON = ("http_proxy", "https_proxy", "no_proxy")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def mirror():
    """Returns the mirror from which this machine installs bookworm, or `None` for the default of debootstrap."""
    directory = Path("/etc/apt/sources.list.d")
    for path in [Path("/etc/apt/sources.list"), *sorted(directory.glob("*.list")), *sorted(directory.glob("*.sources"))]:
        if not path.exists():
            continue
        text = re.sub(r"(?m)^#.*\n?", "", path.read_text())
        for line in text.splitlines():
            parts = re.sub(r"\[[^]]*\]", "", line).split()
            if len(parts) > 3 and parts[0] == "deb" and parts[2] == SUITE:
                return parts[1]
        for paragraph in text.split("\n\n"):
            fields = dict(re.findall(r"(?m)^([\w-]+):\s*(.*)$", paragraph))
            if "deb" in fields.get("Types", "").split() and SUITE in fields.get("Suites", "").split():
                return fields["URIs"].split()[0]
    return None


def inside(root, *command, env=None, **options):
    """Runs a command in a root as `environment.run` does, with a clean environment and its own processes.

    It uses the network of this machine. Processes that it leaves behind are killed.
    """
    return run(program("unshare"), "--mount", "--pid", "--fork", "--kill-child", "--root", root, "--mount-proc",
               "/usr/bin/env", "-i", *environment(env), *command, **options)


def environment(extra=None):
    """Returns the assignments of a clean environment for commands in a root."""
    settings = {
        "PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive",
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ}, **(extra or {}),
    }
    return [f"{name}={value}" for name, value in settings.items()]


def root(name, packages=()):
    """Returns a directory with Debian bookworm (minbase) and these packages. It is created once for each list of them.

    Copy it with `copy` if you change it and other tests need it unchanged. Needs root and debootstrap.
    """
    directory = ROOTS / name
    content = hashlib.sha256(" ".join((SUITE, *packages)).encode()).hexdigest()
    stamp = ROOTS / f"{name}.sha256"
    if stamp.exists() and stamp.read_text() == content and directory.exists():
        return directory
    stamp.unlink(missing_ok=True)
    if not packages:
        debootstrap(directory)
    else:
        copy(root("minbase"), name)
        install(directory, packages)
    stamp.write_text(content)
    return directory


def debootstrap(directory):
    """Creates a minimal Debian in this directory."""
    tool = program("debootstrap")
    if os.geteuid() != 0:
        raise Missing("debootstrap needs root")
    source = mirror()
    run(tool, "--variant=minbase", SUITE, fresh(directory), *([source] if source else []), quiet=True)
    # debootstrap copies the name of this machine, which nothing in the root resolves.
    (directory / "etc/hostname").write_text("debian\n")
    (directory / "etc/hosts").write_text("127.0.0.1 localhost debian\n::1 localhost\n")


def install(directory, packages):
    """Installs packages in a root without starting their services."""
    policy = directory / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    inside(directory, "apt-get", "update", "-qq", quiet=True)
    inside(directory, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages, quiet=True)
    inside(directory, "apt-get", "clean")
    policy.unlink()


def copy(source, name):
    """Copies a root to the root of this name, which it replaces."""
    directory = ROOTS / name
    (ROOTS / f"{name}.sha256").unlink(missing_ok=True)
    fresh(directory)
    run("cp", "--archive", "--reflink=auto", source, directory)
    return directory


def documented(page, name):
    """Returns the shell commands after the line `<!-- run: NAME -->` of `docs/PAGE`."""
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(rf"<!-- run: {re.escape(name)} -->\n+```sh\n(.*?)```", text, re.DOTALL)
    if len(blocks) != 1:
        raise Failed(f"docs/{page} has {len(blocks)} blocks of shell commands after <!-- run: {name} -->")
    return blocks[0]


def delete(directory):
    """Deletes a root."""
    (ROOTS / f"{directory.name}.sha256").unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


class Machine:
    """A Debian root that systemd has booted in a container without a network, as a context manager.

    The root needs the package systemd. Raises `Missing` if containers do not work on this machine.
    """

    def __init__(self, directory):
        self.directory = directory

    def __enter__(self):
        log = self._log = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            [program("systemd-nspawn"), "--boot", "--quiet", "--directory", self.directory, "--register=no",
             "--keep-unit", "--private-network", "--link-journal=no"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )
        try:
            deadline = time.monotonic() + BOOT_LIMIT
            while not self._booted():
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    print(log.read(), file=sys.stderr)
                    raise Missing("systemd-nspawn cannot boot a Debian root on this machine")
                time.sleep(0.2)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _booted(self):
        self._leader = None
        for task in Path(f"/proc/{self._process.pid}/task").glob("*/children"):
            for child in task.read_text().split():
                status = Path(f"/proc/{child}/status").read_text()
                if re.search(r"(?m)^NSpid:.*\t1$", status):
                    self._leader = child
        if self._leader is None:
            return False
        asked = subprocess.run(
            self._command("systemctl", "is-system-running"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, check=False, timeout=BOOT_LIMIT,
        )
        # Degraded: a unit that Debian starts does not work in a container.
        return asked.stdout.strip() in ("running", "degraded")

    def _command(self, *command, env=None):
        return [str(part) for part in (
            program("nsenter"), "--target", self._leader, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup",
            "--root", "--wdns=/root", "/usr/bin/env", "-i", *environment(env), *command,
        )]

    def run(self, *command, env=None, **options):
        """Runs a command in the machine as root, as `environment.run` does."""
        return run(*self._command(*command, env=env), **options)

    def sh(self, script, **options):
        """Runs a script in the machine, in which each failing command ends the script."""
        return self.run("bash", "-euo", "pipefail", "-c", script, **options)

    def __exit__(self, *_):
        self._process.terminate()
        try:
            self._process.wait(timeout=BOOT_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

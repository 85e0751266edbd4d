"""Builds images with buildah, and runs them with podman, in a storage below `target/packages`.

There is no registry: every base image is a Debian root of `debian.py`, and a name that is not in the storage is an error.
"""

import functools
import hashlib
import json
import os
import re
import resource
import subprocess
from pathlib import Path

from debian import SUITE, root
from environment import CACHE, Failed, Missing, program, run

DIRECTORY = CACHE / "containers"
#: The docs write `docker` and `sudo`. podman takes the same arguments, and the tests run as root.
DOCKER = 'docker() { podman "$@"; }; sudo() { "$@"; }'
#: How many seconds a command of podman may take, unless it says otherwise.
LIMIT = 120


@functools.cache
def settings(build=False):
    """Returns the variables with which buildah and podman use this storage and pull nothing.

    With `build`, the steps of a build have the configuration of this machine's cargo, which may name another registry.
    """
    if os.geteuid() != 0:
        raise Missing("the storage of images needs root")
    temporary = DIRECTORY / "tmp"  # buildah keeps the caches of builds there
    temporary.mkdir(parents=True, exist_ok=True)
    write("storage.conf", f"""\
[storage]
driver = "overlay"
graphroot = "{DIRECTORY}/storage"
runroot = "{DIRECTORY}/run"
""")
    write("registries.conf", "unqualified-search-registries = []\n")
    volumes = []
    home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    for name in ("config.toml", "config"):
        if build and (home / name).is_file():
            volumes.append(f"{home / name}:/usr/local/cargo/{name}:ro")
    # podman would raise the limits above those of this machine, which root cannot do everywhere. buildah has this limit
    # of processes, and fails if it is raised.
    limits = []
    for name, wanted in (("nofile", 65536), ("nproc", 32768)):
        _, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        limits.append(f"{name}={limit}:{limit}")
    runtime = "" if run_quietly("sh", "-c", "command -v runc || true") == "" else 'runtime = "runc"\n'
    configuration = write("build.conf" if build else "containers.conf", f"""\
[containers]
default_ulimits = {json.dumps(limits)}
volumes = {json.dumps(volumes)}
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
{runtime}""")
    return {
        "BUILDAH_ISOLATION": "chroot",
        "CONTAINERS_CONF": configuration,
        "CONTAINERS_REGISTRIES_CONF": DIRECTORY / "registries.conf",
        "CONTAINERS_STORAGE_CONF": DIRECTORY / "storage.conf",
        "TMPDIR": temporary,
    }


def write(name, text):
    path = DIRECTORY / name
    path.write_text(text)
    return path


def run_quietly(*command, **options):
    return run(*command, quiet=True, **options).strip()


def buildah(*arguments, **options):
    """Runs buildah, and returns its output without the last line break."""
    return run_quietly(program("buildah"), *arguments, env=settings(), **options)


def podman(*arguments, timeout=LIMIT, **options):
    """Runs podman, and returns its output without the last line break."""
    return run_quietly(program("podman"), *arguments, env=settings(), timeout=timeout, **options)


def need_podman(network):
    """Raises `Missing` if podman cannot run a container with a published port on this machine."""
    program("podman")
    debian_image()
    try:
        shell("docker run --rm --publish 127.0.0.1:8080:8080 debian:bookworm-slim true", network=network, quiet=True)
    except Failed as error:
        raise Missing("podman cannot run a container on this machine") from error


def inspect(image):
    """Returns the configuration of an image in Docker's format."""
    return json.loads(buildah("inspect", "--type", "image", image))["Docker"]


def create(tag, content, fill, *config):
    """Creates an image from scratch, once for each `content`. `fill` receives the directory of its root."""
    stamp = DIRECTORY / f"{re.sub(r'[^a-z0-9.]', '-', tag)}.sha256"
    digest = hashlib.sha256(json.dumps([content, config]).encode()).hexdigest()
    if buildah("images", "--quiet", "--filter", f"reference=localhost/{tag}") and stamp.exists() and stamp.read_text() == digest:
        return
    container = buildah("from", "scratch")
    try:
        fill(Path(buildah("mount", container)))
        if config:
            buildah("config", *config, container)
        buildah("commit", "--quiet", "--format", "docker", container, f"localhost/{tag}")
    finally:
        buildah("rm", container)
    stamp.write_text(digest)


def copy(source, target):
    """Copies the content of a directory into another one, with owners and modes."""
    run("cp", "--archive", "--reflink=auto", f"{source}/.", target)


def debian_image():
    """Creates the image `debian:bookworm-slim`, the default of `BASE`."""
    create(f"debian:{SUITE}-slim", SUITE, lambda directory: copy(root("minbase"), directory))


def expect(condition, message):
    if not condition:
        raise Failed(message)


def shell(script, *, build=False, network=None, environment=None, **options):
    """Runs shell commands of the docs, and returns their output. The first one that fails ends the script."""
    command = ["bash", "-euo", "pipefail", "-c", f"{DOCKER}\n{script}"]
    return run(*(network.command(*command) if network else command), env={**settings(build), **(environment or {})}, **options)


class Network:
    """A network namespace with a loopback device only, as a context manager, so that all ports are free."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [program("unshare"), "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )
        if self._process.stdout.readline() != "up\n":
            self.__exit__()
            raise Missing("this machine cannot create a network namespace")
        return self

    def command(self, *command):
        """Returns the command that runs `command` in this namespace."""
        return [program("nsenter"), f"--net=/proc/{self._process.pid}/ns/net", *command]

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def descendants(pid):
    """Returns the processes that a process has started, directly or not."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += [int(child), *descendants(child)]
    return found

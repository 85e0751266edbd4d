"""Builds images with buildah in a storage below `target/packages`, and runs them with a Docker daemon of its own.

There is no registry: every base image is a Debian root of `debian.py`, and a name that is not in the storage is an error.
"""

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from debian import SUITE, root
from environment import CACHE, Failed, Missing, fresh, program, run

DIRECTORY = CACHE / "containers"
#: How many seconds the daemon may take to start, and a container to reach a state.
LIMIT = 60


@functools.cache
def settings():
    """Returns the variables with which buildah uses this storage, builds without a container engine, and pulls nothing.

    The steps of a build have the configuration of this machine's cargo, which may name another registry, and the CA
    certificates of `SSL_CERT_FILE`, which may have that of a proxy.
    """
    if os.geteuid() != 0:
        raise Missing("the storage of images needs root")
    temporary = DIRECTORY / "tmp"  # buildah keeps the caches of builds there
    temporary.mkdir(parents=True, exist_ok=True)
    home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    volumes = [f"{file}:/usr/local/cargo/{file.name}:ro" for file in (home / "config.toml", home / "config") if file.is_file()]
    if certificates := os.environ.get("SSL_CERT_FILE"):
        volumes.append(f"{certificates}:/etc/ssl/certs/ca-certificates.crt:ro")
    storage = f'[storage]\ndriver = "overlay"\ngraphroot = "{DIRECTORY}/storage"\nrunroot = "{DIRECTORY}/run"\n'
    return {
        "BUILDAH_ISOLATION": "chroot",
        "CONTAINERS_CONF": str(write("containers.conf", f"[containers]\nvolumes = {json.dumps(volumes)}\n")),
        "CONTAINERS_REGISTRIES_CONF": str(write("registries.conf", "unqualified-search-registries = []\n")),
        "CONTAINERS_STORAGE_CONF": str(write("storage.conf", storage)),
        "TMPDIR": str(temporary),
    }


def write(name, text):
    """Writes a file next to the storage, and returns its path."""
    path = DIRECTORY / name
    path.write_text(text)
    return path


def expect(condition, message):
    if not condition:
        raise Failed(message)


def wait_until(condition, message, limit=LIMIT):
    deadline = time.monotonic() + limit
    while not condition():
        expect(time.monotonic() < deadline, f"{message} within {limit} s")
        time.sleep(0.2)


def succeeds(command, **variables):
    """Returns whether a command exits with 0. Its output is not shown."""
    return subprocess.run(
        [str(part) for part in command], env={**os.environ, **variables}, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=LIMIT,
    ).returncode == 0


def buildah(*arguments, **options):
    """Runs buildah, and returns its output without the last line break."""
    return run(program("buildah"), *arguments, env=settings(), quiet=True, **options).strip()


def exists(tag):
    """Returns whether the storage has this image."""
    return buildah("images", "--quiet", "--filter", f"reference=localhost/{tag}") != ""


def inspect(tag):
    """Returns the configuration of an image in Docker's format."""
    return json.loads(buildah("inspect", "--type", "image", f"localhost/{tag}"))["Docker"]


def create(tag, content, fill, *config):
    """Creates an image from scratch, once for each `content`. `fill` receives the directory of its root."""
    stamp = DIRECTORY / f"{re.sub(r'[^a-z0-9.]', '-', tag)}.sha256"
    digest = hashlib.sha256(json.dumps([content, config]).encode()).hexdigest()
    if exists(tag) and stamp.exists() and stamp.read_text() == digest:
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
    """Creates the image of a minimal Debian, and returns its name."""
    tag = f"debian:{SUITE}-slim"
    create(tag, SUITE, lambda directory: copy(root("minbase"), directory))
    return tag


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

    def get(self, url, *options):
        """Returns the status and the body of the response to a request, which `curl` sends with these options."""
        text = run(*self.command("curl", "-sS", "-w", "\n%{http_code}", "--max-time", "30", *options, url), quiet=True)
        body, _, status = text.rpartition("\n")
        return int(status), body

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


class Docker(Network):
    """A Docker daemon in a network of its own, without images and containers, as a context manager.

    Raises `Missing` if Docker is not installed, or cannot work on this machine.
    """

    def __enter__(self):
        self._client, self._functions = client()
        daemon, unshare = program("dockerd"), program("unshare")
        settings()  # needs root
        super().__enter__()
        # The path of a socket must be short.
        self._directory = Path(tempfile.mkdtemp(prefix="tollkey-docker-"))
        self._data = fresh(DIRECTORY / "docker")
        self._host = f"unix://{self._directory}/docker.sock"
        self._log = open(self._directory / "log", "w+", errors="replace")
        # The daemon's mounts and processes end with it.
        command = self.command(
            unshare, "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", daemon, "--host", self._host,
            "--data-root", self._data, "--exec-root", self._directory / "exec", "--pidfile", self._directory / "pid",
        )
        self._daemon = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=self._log,
                                        stderr=self._log, start_new_session=True)
        try:
            deadline = time.monotonic() + LIMIT
            while not succeeds([self._client, "version"], DOCKER_HOST=self._host):
                if self._daemon.poll() is not None or time.monotonic() > deadline:
                    self._log.seek(0)
                    print(self._log.read()[-4000:], flush=True)
                    raise Missing("the Docker daemon does not start on this machine")
                time.sleep(0.2)
        except BaseException:
            self.__exit__()
            raise
        return self

    def load(self, *tags):
        """Copies images from the storage of buildah. A pair of names renames the image."""
        for tag in tags:
            source, target = tag if isinstance(tag, tuple) else (tag, tag)
            archive = DIRECTORY / "image.tar"
            buildah("push", "--quiet", f"localhost/{source}", f"docker-archive:{archive}:{target}")
            self.run("load", "--quiet", "--input", archive)
            archive.unlink()

    def run(self, *arguments):
        """Runs `docker`, and returns its output without the last line break."""
        return run(self._client, *arguments, env={"DOCKER_HOST": self._host}, quiet=True).strip()

    def inspect(self, name):
        return json.loads(self.run("inspect", name))[0]

    def shell(self, script, cwd, **variables):
        """Runs shell commands of the docs, and returns the lines that they print. The first that fails ends the script."""
        environment = {
            "DOCKER_HOST": self._host, "DOCKER_BUILDKIT": "1", "COMPOSE_DOCKER_CLI_BUILD": "1",
            "PATH": f"{self._client.parent}{os.pathsep}{os.environ['PATH']}", **variables,
        }
        script = f"{self._functions}\n{script}"
        command = self.command("bash", "-euo", "pipefail", "-c", script)
        return run(*command, cwd=cwd, env=environment, quiet=True).splitlines()

    def __exit__(self, *_):
        if self._daemon.poll() is None:
            for pid in descendants(self._daemon.pid)[:1]:  # dockerd, which stops its containers
                os.kill(pid, 15)
            try:
                self._daemon.wait(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
        super().__exit__()
        self._log.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        shutil.rmtree(self._data, ignore_errors=True)


@functools.cache
def client():
    """Returns the path of a `docker` that builds with BuildKit, and shell functions for what is not installed.

    Debian 12 has Compose as the program `docker-compose`. The tests run as root, without sudo.
    """
    functions = ['sudo() { "$@"; }']
    for directory in os.environ.get("PATH", "").split(os.pathsep):
        docker = Path(directory) / "docker"
        if not os.access(docker, os.X_OK):
            continue
        major = int(re.search(r"version (\d+)", run(docker, "--version", quiet=True))[1])
        if major >= 23 and not succeeds([docker, "buildx", "version"]):
            continue  # needs the plugin
        if not succeeds([docker, "compose", "version"]):
            functions.append('docker() { if [ "$1" = compose ]; then docker-compose "${@:2}"; else command docker "$@"; fi; }')
        return docker, "\n".join(functions)
    raise Missing("Docker with BuildKit is not installed")

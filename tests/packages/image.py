"""Builds the container image, checks its configuration and size, and runs it with a read-only root file system.

buildah builds it on Debian roots, the first with the Rust toolchain of this machine. The server then runs as the user of
the image, in `buildah run --isolation chroot` with the commands of the README. Docker also builds the image, with the same
binary, and runs the commands of the docs. With TOLLKEY_TEST_BINARY, buildah uses that binary, too, and compiles nothing.
"""

import functools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import containers
from containers import Docker, Network, buildah, descendants, expect, inspect, succeeds, wait_until
from debian import SUITE, documented, root
from environment import ROOT, Failed, fresh, program
from environment import run as execute

PAGE = "installing.md"
#: What the image adds to its base, compressed, in bytes.
SIZE_LIMIT = 20_000_000
USER = 10001
DATA = "/var/lib/tollkey"
DRAIN = 5
BASE = "http://127.0.0.1:8080"
LABELS = "org.opencontainers.image."
#: Besides cargo, what a build needs.
PACKAGES = ("ca-certificates", "gcc", "libc6-dev", "make", "perl", "pkg-config")
#: How many seconds a server may take to start, and to stop after its drain when it has nothing to do.
LIMIT = 30
#: Runs a container of buildah whose root file system is read-only. $0: its root; the rest: the command. buildah creates
#: a file in /run.
READ_ONLY = 'mount -o remount,bind,ro "$0" && mount -t tmpfs tmpfs "$0/run" && exec "$@"'
#: A cargo that compiles nothing: it copies the binary to the place at which `cargo build` would have created it.
COPYING_CARGO = """#!/bin/sh
while [ "$1" != --target-dir ]; do shift; done
install -D /usr/local/lib/tollkey "$2/release/tollkey"
"""


def run():
    build()
    image = inspect("tollkey")
    check_configuration(image["config"])
    check_size(image)
    check_content()
    run_in_chroot(image)
    run_in_docker()


def bases():
    """Returns the images that the Containerfile names by default: the one that compiles, and the one that it adds to."""
    names = dict(re.findall(r"(?m)^ARG (RUST_BASE|BASE)=(\S+)$", (ROOT / "deploy" / "Containerfile").read_text()))
    channel = re.search(r'channel = "(\d+\.\d+)', (ROOT / "rust-toolchain.toml").read_text())[1]
    expected = {"RUST_BASE": f"rust:{channel}-{SUITE}", "BASE": f"debian:{SUITE}-slim"}
    expect(names == expected, f"the Containerfile has the bases {names} instead of {expected}")
    return names["RUST_BASE"], names["BASE"]


def compiling_base(tag):
    """Creates an image with the Rust toolchain of this machine."""
    sysroot = Path(execute("rustc", "--print", "sysroot", cwd=ROOT, quiet=True).strip())

    def fill(directory):
        containers.copy(root("image-build", PACKAGES), directory)
        for name in ("bin", "lib"):
            containers.copy(sysroot / name, directory / "usr/local" / name)

    content = [PACKAGES, execute("rustc", "-vV", cwd=ROOT, quiet=True)]
    containers.create(tag, content, fill, "--env", "CARGO_HOME=/usr/local/cargo")


def copying_base(tag, binary):
    """Creates an image in which `cargo build` copies a binary."""

    def fill(directory):
        containers.copy(root("image-build", PACKAGES), directory)
        shutil.copy(binary, directory / "usr/local/lib/tollkey")
        cargo = directory / "usr/local/bin/cargo"
        cargo.write_text(COPYING_CARGO)
        cargo.chmod(0o755)

    status = os.stat(binary)
    containers.create(tag, [PACKAGES, str(binary), status.st_size, status.st_mtime_ns], fill)


@functools.cache
def build():
    """Builds the image with the command of the docs, once for all modules of a run."""
    rust_base, base = bases()
    expect(containers.debian_image() == base, f"the base is not {base}")
    if binary := os.environ.get("TOLLKEY_TEST_BINARY"):
        copying_base(rust_base, binary)
    else:
        compiling_base(rust_base)
    began = time.monotonic()
    execute("bash", "-euc", documented(PAGE, "image-build"), cwd=ROOT, env=containers.settings())
    print(f"built in {time.monotonic() - began:.0f} s", flush=True)


def load_bases(docker):
    """Copies the bases of the image to Docker. The first one copies the binary of the image that buildah has built."""
    rust_base, base = bases()
    binary = containers.DIRECTORY / "tollkey"
    container = buildah("from", "localhost/tollkey")
    try:
        shutil.copy2(Path(buildah("mount", container)) / "usr/local/bin/tollkey", binary)
    finally:
        buildah("rm", container)
    copying_base("copying", binary)
    docker.load(base, ("copying", rust_base))


def git(*arguments):
    return execute("git", *arguments, cwd=ROOT, quiet=True).strip()


def revision():
    return git("rev-parse", "HEAD")


def check_configuration(config):
    """The configuration that container engines and orchestrators read."""
    labels = {name.removeprefix(LABELS): value for name, value in config["Labels"].items()}
    found = {
        "user": config["User"],
        "entry point": config["Entrypoint"],
        "command": config["Cmd"] or [],
        "stop signal": config["StopSignal"],
        "health check": config["Healthcheck"]["Test"],
        "working directory": config["WorkingDir"],
        "volumes": list(config["Volumes"]),
        "ports": sorted(config["ExposedPorts"]),
        "settings": sorted(variable for variable in config["Env"] if not variable.startswith("PATH=")),
        "title": labels["title"],
        "licenses": labels["licenses"],
        "version": labels["version"],
        "revision": labels["revision"],
        "description": bool(labels["description"]),
    }
    expected = {
        "user": f"{USER}:{USER}",
        "entry point": ["tollkey"],
        "command": [],
        "stop signal": "SIGTERM",
        "health check": ["CMD", "tollkey", "healthcheck"],
        "working directory": DATA,
        "volumes": [DATA],
        "ports": ["8080/tcp", "9090/tcp"],
        "settings": [
            f"TOLLKEY_DRAIN_SECONDS={DRAIN}", "TOLLKEY_LISTEN=0.0.0.0:8080", "TOLLKEY_METRICS_LISTEN=0.0.0.0:9090",
        ],
        "title": "Tollkey",
        "licenses": re.search(r'(?m)^license = "(.*)"$', (ROOT / "Cargo.toml").read_text())[1],
        "version": git("describe", "--tags", "--always"),
        "revision": revision(),
        "description": True,
    }
    for name, value in expected.items():
        expect(found[name] == value, f"the image has the {name} {found[name]!r} instead of {value!r}")


def check_size(image):
    """The layers above those of the base, compressed with gzip as for a registry."""
    directory = fresh(containers.DIRECTORY / "oci")
    buildah("push", "--quiet", "--format", "oci", "localhost/tollkey", f"oci:{directory}:tollkey")

    def blob(digest):
        return directory / "blobs" / digest.replace(":", "/")

    [manifest] = json.loads((directory / "index.json").read_text())["manifests"]
    layers = json.loads(blob(manifest["digest"]).read_text())["layers"]
    base = len(inspect(f"debian:{SUITE}-slim")["rootfs"]["diff_ids"])
    expect(all(layer["mediaType"].endswith("+gzip") for layer in layers), "the layers are not compressed")
    expect(len(layers) == len(image["rootfs"]["diff_ids"]) > base, "the image has no layers of its own")
    size = sum(layer["size"] for layer in layers[base:])
    shutil.rmtree(directory)
    print(f"{size / 1e6:.1f} MB in {len(layers) - base} layers above the base", flush=True)
    expect(size <= SIZE_LIMIT, f"the image adds {size} bytes to its base, more than {SIZE_LIMIT}")


def check_content():
    """Nothing of the build is in the image, and only the data belongs to its user."""
    container = buildah("from", "localhost/tollkey")
    try:
        directory = Path(buildah("mount", container))
        owned = execute("find", directory, "-xdev", "-uid", USER, "-printf", "/%P\n", quiet=True).split()
        expect(owned == [DATA], f"the user of the image owns {owned}")
        for path in ("src", "target", "out", "usr/local/cargo", "usr/local/bin/cargo"):
            expect(not (directory / path).exists(), f"the image contains /{path}")
        for path in ("etc/ssl/certs/ca-certificates.crt", "usr/share/doc/tollkey/LICENSE-MIT"):
            expect((directory / path).stat().st_size > 0, f"the image has no /{path}")
        print(f"the binary has {(directory / 'usr/local/bin/tollkey').stat().st_size / 1e6:.1f} MB", flush=True)
    finally:
        buildah("rm", container)


def run_in_chroot(image):
    """Runs the server as the image says, the commands of the README, the health check, and stops the server."""
    config = image["config"]
    with tempfile.TemporaryDirectory() as directory, Network() as network:
        directory = Path(directory)
        directory.chmod(0o755)
        secret = directory / "jwt-secret"
        secret.write_text(secrets.token_hex(32))
        os.chown(secret, USER, USER)
        secret.chmod(0o400)
        container = buildah("from", "localhost/tollkey")
        try:
            # Creates the mount points for which the root file system must be writable.
            buildah("run", "--user", "0", container, "true")
            mounted = buildah("mount", container)

            def command(*arguments):
                return network.command(
                    program("unshare"), "--mount", "sh", "-c", READ_ONLY, mounted, program("buildah"), "run",
                    "--volume", f"{secret}:/run/secrets/jwt-secret:ro",
                    "--env", "TOLLKEY_JWT_HS256_SECRET_FILE=/run/secrets/jwt-secret", container, "--", *arguments,
                )

            expect(in_container(command("touch", f"{DATA}/new")), "the data directory is read-only")
            # Root can write where the mount allows it.
            attempt = command("touch", "/usr/local/bin/new")
            position = attempt.index("--volume")
            attempt[position:position] = ["--user", "0"]
            expect(not in_container(attempt), "the root file system is writable")
            server = Server(command(*config["Entrypoint"]), directory / "log")
            try:
                health_check = command(*config["Healthcheck"]["Test"][1:])
                server.wait_until_ready(health_check)
                story(network, command, directory)
                server.check_user()
                server.stop(network)
                expect(not in_container(health_check), "the health check succeeds without a server")
            finally:
                server.end()
        finally:
            buildah("rm", container)


def in_container(command):
    return succeeds(command, **containers.settings())


class Server:
    """The server in a container of buildah."""

    def __init__(self, command, log):
        self._log = log
        with open(log, "w") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **containers.settings()},
            )

    def wait_until_ready(self, health_check):
        def ready():
            expect(self._process.poll() is None, f"the server has ended:\n{self._log.read_text()}")
            return in_container(health_check)

        wait_until(ready, "the health check does not succeed")

    def _pid(self):
        found = [pid for pid in descendants(self._process.pid) if Path(f"/proc/{pid}/comm").read_text() == "tollkey\n"]
        expect(len(found) == 1, f"the container has {len(found)} processes of the server")
        return found[0]

    def check_user(self):
        status = Path(f"/proc/{self._pid()}/status").read_text()
        for name, expected in (("Uid", str(USER)), ("Gid", str(USER)), ("CapEff", "0" * 16), ("CapPrm", "0" * 16)):
            values = set(re.search(rf"(?m)^{name}:\s+(.*)$", status)[1].split())
            expect(values == {expected}, f"the server has {name} {values}")

    def stop(self, network):
        """Sends the stop signal. During the drain, `/readyz` is 503, and other requests succeed."""
        began = time.monotonic()
        os.kill(self._pid(), signal.SIGTERM)
        deadline = began + DRAIN
        while (status := network.get(f"{BASE}/readyz")[0]) != 503:
            expect(time.monotonic() < deadline, f"/readyz has status {status} after SIGTERM")
        expect(network.get(f"{BASE}/livez")[0] == 200, "the server accepts no requests during the drain")
        try:
            status = self._process.wait(timeout=DRAIN + LIMIT)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"the server did not stop within {DRAIN + LIMIT} s") from error
        seconds = time.monotonic() - began
        expect(status == 0 and seconds >= DRAIN,
               f"the server stopped with {status} after {seconds:.1f} s:\n{self._log.read_text()}")
        print(f"stopped after {seconds:.1f} s", flush=True)

    def end(self):
        if self._process.poll() is None:
            for pid in [*descendants(self._process.pid), self._process.pid]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self._process.wait()


def story(network, command, directory):
    """Runs the commands of the README. Its program is `cargo run`; here it is the program of the image."""
    blocks = re.findall(r"<!-- run -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    expect(len(blocks) == 2, f"the README has {len(blocks)} blocks of commands")
    tollkey = directory / "tollkey"
    arguments = " ".join(f"'{part}'" for part in map(str, command("tollkey")))
    tollkey.write_text(f'#!/bin/sh\nexec {arguments} "$@"\n')
    tollkey.chmod(0o755)
    script = "\n".join(blocks).replace("cargo run --release --quiet --", str(tollkey))
    expect("cargo" not in script, "the README has other commands of cargo")
    output = execute(*network.command("bash", "-euo", "pipefail", "-c", script), env=containers.settings(), quiet=True)
    record, *rest = output.splitlines()
    expect(json.loads(record)["scopes"] == ["links:read"], f"the key has the record {record}")
    expect(rest[:3] == ["200", "204", "401"], f"the README's commands print {rest}")
    expect(json.loads(rest[3]) == {"valid": False, "code": "revoked"}, f"the revoked key has the decision {rest[3]}")


def run_in_docker():
    """Builds the image with Docker, and runs the commands of the docs in a container with all of their restrictions."""
    with tempfile.TemporaryDirectory() as directory, Docker() as docker:
        load_bases(docker)
        docker.shell(documented(PAGE, "image-build-docker"), ROOT)
        check_configuration(docker.inspect("tollkey")["Config"])
        owner = docker.run("run", "--rm", "--entrypoint", "stat", "tollkey", "--format", "%u:%g", DATA)
        expect(owner == f"{USER}:{USER}", f"Docker gives {DATA} to {owner}")

        start = documented(PAGE, "image-run")
        verify = documented(PAGE, "image-verify")
        stop, remove = documented(PAGE, "image-stop").splitlines()
        *_, decision, base, key, service_key = docker.shell("\n".join([
            start, documented(PAGE, "image-first-key"), verify, 'printf "%s\\n" "$BASE" "$KEY" "$SERVICE"',
        ]), directory)
        check_decision(decision)
        wait_until(lambda: docker.inspect("tollkey")["State"]["Health"]["Status"] == "healthy", "the container is not healthy")
        check_restrictions(docker)
        began = time.monotonic()
        docker.shell(stop, directory)
        seconds = time.monotonic() - began
        code = docker.inspect("tollkey")["State"]["ExitCode"]
        expect(code == 0 and DRAIN <= seconds <= LIMIT, f"Docker stopped the server with {code} after {seconds:.1f} s")
        print(f"Docker stopped the container after {seconds:.1f} s", flush=True)

        # The next container has the keys of this one. The secret exists.
        docker.shell(remove, directory)
        docker.shell(start.partition("\n")[2], directory)
        docker.shell(f"until curl -sSf {BASE}/readyz; do sleep 0.2; done", directory)
        check_decision(docker.shell(verify, directory, BASE=base, KEY=key, SERVICE=service_key)[-1])


def check_decision(text):
    expect(json.loads(text)["valid"] is True, f"the key has the decision {text}")


def check_restrictions(docker):
    """The container has the restrictions of the command in the docs."""
    expect(docker.inspect("tollkey")["HostConfig"]["ReadonlyRootfs"], "the root file system is writable")
    status = docker.run("exec", "tollkey", "cat", "/proc/1/status")
    for name, expected in (("CapEff", "0" * 16), ("CapBnd", "0" * 16), ("NoNewPrivs", "1"), ("Uid", str(USER))):
        values = set(re.search(rf"(?m)^{name}:\s+(.*)$", status)[1].split())
        expect(values == {expected}, f"in Docker, the server has {name} {values}")

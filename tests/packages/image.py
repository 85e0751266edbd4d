"""Builds the container image, checks its configuration and size, and runs it with a read-only root file system.

buildah builds it on Debian roots, the first with the Rust toolchain of this machine. The server then runs as the user of
the image: in `buildah run --isolation chroot` with the commands of the README, and in podman with those of the docs.
With TOLLKEY_TEST_BINARY, the image contains that binary, and nothing is compiled.
"""

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
from containers import Network, buildah, descendants, expect, inspect, podman, shell
from debian import SUITE, documented, root
from environment import ROOT, Failed, fresh, program
from environment import run as execute

PAGE = "installing.md"
#: What the image adds to its base, compressed, in bytes.
SIZE_LIMIT = 20_000_000
USER = 10001
DATA = "/var/lib/tollkey"
DRAIN = 5
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
    create_bases()
    build()
    image = inspect("tollkey")
    check_configuration(image)
    check_size(image)
    check_content()
    run_in_chroot(image)
    run_in_podman()


def create_bases():
    """Creates the images that the Containerfile names by default."""
    text = (ROOT / "deploy" / "Containerfile").read_text()
    bases = dict(re.findall(r"(?m)^ARG (RUST_BASE|BASE)=(\S+)$", text))
    expect(bases.get("BASE") == f"debian:{SUITE}-slim", f"the Containerfile has the bases {bases}")
    channel = re.search(r'channel = "(\d+\.\d+)', (ROOT / "rust-toolchain.toml").read_text())[1]
    expect(bases.get("RUST_BASE") == f"rust:{channel}-{SUITE}", f"the Containerfile has the bases {bases}")
    containers.debian_image()

    binary = os.environ.get("TOLLKEY_TEST_BINARY")
    packages = ("ca-certificates", "gcc", "libc6-dev", "make", "perl", "pkg-config")
    sysroot = Path(execute("rustc", "--print", "sysroot", cwd=ROOT, quiet=True).strip())

    def fill(directory):
        containers.copy(root("image-build", packages), directory)
        if binary:
            shutil.copy(binary, directory / "usr/local/lib/tollkey")
            cargo = directory / "usr/local/bin/cargo"
            cargo.write_text(COPYING_CARGO)
            cargo.chmod(0o755)
        else:
            for name in ("bin", "lib"):
                containers.copy(sysroot / name, directory / "usr/local" / name)

    content = [packages, execute("rustc", "-vV", cwd=ROOT, quiet=True)]
    if binary:
        status = os.stat(binary)
        content = [packages, binary, status.st_size, status.st_mtime_ns]
    containers.create(bases["RUST_BASE"], content, fill, "--env", "CARGO_HOME=/usr/local/cargo")


def build():
    began = time.monotonic()
    shell(documented(PAGE, "image-build"), build=True, cwd=ROOT)
    print(f"built in {time.monotonic() - began:.0f} s", flush=True)


def check_configuration(image):
    """The configuration that container engines and orchestrators read."""
    config = image["config"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}

    def git(*arguments):
        return execute("git", *arguments, cwd=ROOT, quiet=True).strip()

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
        "revision": git("rev-parse", "HEAD"),
        "description": True,
    }
    for name, value in expected.items():
        expect(found[name] == value, f"the image has the {name} {found[name]!r} instead of {value!r}")


def check_size(image):
    """The layers above those of the base, compressed with gzip as for a registry."""
    directory = fresh(containers.DIRECTORY / "oci")
    buildah("push", "--quiet", "--format", "oci", "tollkey", f"oci:{directory}:tollkey")

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
    container = buildah("from", "tollkey")
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
        container = buildah("from", "tollkey")
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

            expect(succeeds(command("touch", f"{DATA}/new")), "the data directory is read-only")
            # As root, whom only the mount can stop.
            root_command = command("touch", "/usr/local/bin/new")
            root_command[root_command.index("--volume"):0] = ["--user", "0"]
            expect(not succeeds(root_command), "the root file system is writable, so this test shows nothing")
            server = Server(command(*config["Entrypoint"]), directory / "log")
            try:
                health_check = command(*config["Healthcheck"]["Test"][1:])
                server.wait_until_ready(health_check)
                story(network, command, directory)
                server.check_user()
                server.stop(network)
                expect(not succeeds(health_check), "the health check succeeds without a server")
            finally:
                server.end()
        finally:
            buildah("rm", container)


def succeeds(command):
    """Returns whether a command exits with 0. Its output is not shown."""
    settings = {name: str(value) for name, value in containers.settings().items()}
    return subprocess.run(
        [str(part) for part in command], env={**os.environ, **settings}, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=LIMIT,
    ).returncode == 0


def wait_until(condition, message):
    deadline = time.monotonic() + LIMIT
    while not condition():
        expect(time.monotonic() < deadline, f"{message} within {LIMIT} s")
        time.sleep(0.2)


class Server:
    """The server in a container of buildah."""

    def __init__(self, command, log):
        self._log = log
        with open(log, "w") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **{name: str(value) for name, value in containers.settings().items()}},
            )

    def wait_until_ready(self, health_check):
        def ready():
            expect(self._process.poll() is None, f"the server has ended:\n{self._log.read_text()}")
            return succeeds(health_check)

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
        while (status := get(network, "/readyz")) != "503":
            expect(time.monotonic() < deadline, f"/readyz has status {status} after SIGTERM")
        expect(get(network, "/livez") == "200", "the server accepts no requests during the drain")
        try:
            status = self._process.wait(timeout=DRAIN + LIMIT)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"the server did not stop within {DRAIN + LIMIT} s") from error
        seconds = time.monotonic() - began
        expect(status == 0 and seconds >= DRAIN, f"the server stopped with {status} after {seconds:.1f} s:\n{self._log.read_text()}")
        print(f"stopped after {seconds:.1f} s", flush=True)

    def end(self):
        if self._process.poll() is None:
            for pid in [*descendants(self._process.pid), self._process.pid]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self._process.wait()


def get(network, path):
    """Returns the status of the response to a request to the server."""
    return execute(*network.command("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5",
                                    f"http://127.0.0.1:8080{path}"), quiet=True)


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


def run_in_podman():
    """Runs the commands of the docs in a container with all of their restrictions."""
    with tempfile.TemporaryDirectory() as directory, Network() as network:
        containers.need_podman(network)

        def commands(script, **variables):
            return shell(script, network=network, cwd=directory, environment=variables, quiet=True).splitlines()

        start = documented(PAGE, "image-run")
        verify = documented(PAGE, "image-verify")
        stop, remove = documented(PAGE, "image-stop").splitlines()
        try:
            *_, decision, base, key, service_key = commands("\n".join([
                start, documented(PAGE, "image-first-key"), verify, 'printf "%s\n" "$BASE" "$KEY" "$SERVICE"',
            ]))
            check_decision(decision)
            podman("healthcheck", "run", "tollkey")
            check_restrictions()
            began = time.monotonic()
            commands(stop)
            seconds = time.monotonic() - began
            code = json.loads(podman("inspect", "tollkey"))[0]["State"]["ExitCode"]
            expect(code == 0 and DRAIN <= seconds <= LIMIT, f"podman stopped the server with {code} after {seconds:.1f} s")
            print(f"podman stopped the container after {seconds:.1f} s", flush=True)

            # The next container has the keys of this one. The secret exists.
            commands(remove)
            commands(start.partition("\n")[2])
            wait_until(lambda: get(network, "/readyz") == "200", "the second container is not ready")
            check_decision(commands(verify, BASE=base, KEY=key, SERVICE=service_key)[-1])
        finally:
            podman("rm", "--force", "--ignore", "--time", "0", "tollkey")
            podman("volume", "rm", "--force", "tollkey-data")


def check_decision(text):
    decision = json.loads(text)
    expect(decision["valid"] is True, f"the key has the decision {decision}")


def check_restrictions():
    """The container has the restrictions of the command in the docs."""
    container = json.loads(podman("inspect", "tollkey"))[0]
    expect(container["HostConfig"]["ReadonlyRootfs"], "the root file system is writable")
    status = podman("exec", "tollkey", "cat", "/proc/1/status")
    for name, expected in (("CapEff", "0" * 16), ("CapBnd", "0" * 16), ("NoNewPrivs", "1"), ("Uid", str(USER))):
        values = set(re.search(rf"(?m)^{name}:\s+(.*)$", status)[1].split())
        expect(values == {expected}, f"in podman, the server has {name} {values}")

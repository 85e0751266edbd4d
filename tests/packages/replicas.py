"""Three replicas of a packaged binary, with TLS to PostgreSQL and behind nginx: a rolling restart under load.

The binary is the argument of `run` and of this script, or the one in the environment variable TOLLKEY_TEST_BINARY, by
default the release build. It must have the feature `pg-tls`.

The test starts a PostgreSQL that accepts only TLS over TCP, with a CA of its own, and nginx with the configuration of
`examples/gateways/nginx-replicas`. While clients verify keys through nginx, it restarts all replicas and revokes keys. No
request fails, and every replica rejects a revoked key as soon as the revocation has its response.
"""

import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import environment
from environment import ROOT, TARGET, Failed, Missing, program

#: The seconds for which a replica drains, as `examples/gateways/nginx-replicas` says.
DRAIN = 5
CLIENTS = 8
#: The requests that nginx passes on before and after each restart.
REQUESTS = 200
#: The longest time for a step, such as the start of a process, in seconds.
LIMIT = 60
#: The names in the certificate of PostgreSQL. No name server knows the second one, so its URL also has the address.
HOSTS = ("localhost", "db.example")
#: The addresses of the replicas in the shipped configuration of nginx.
SHIPPED = ("127.0.0.1:8080", "127.0.0.1:8082", "127.0.0.1:8083")
#: Variables that would change what the processes of this test do.
PRIVATE = ("TOLLKEY_", "DATABASE_", "PG", "SSL_CERT_")


def run(binary=None):
    if binary is None:
        binary = os.environ.get("TOLLKEY_TEST_BINARY") or TARGET / "release" / "tollkey"
    if not Path(binary).is_file():
        raise Missing(f"{binary} does not exist; build it with `cargo build --release --features pg-tls`, or set "
                      "TOLLKEY_TEST_BINARY")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollkey-")))
        # Other users run the binary and read the CA.
        directory.chmod(0o755)
        tollkey = Path(shutil.copy(binary, directory / "tollkey"))
        tollkey.chmod(0o755)
        ca = create_certificates(directory)
        postgres = stack.enter_context(Postgres(directory, ca))
        settings = {
            "TOLLKEY_JWT_HS256_SECRET": secrets.token_hex(32),
            "TOLLKEY_SEALING_SECRET": secrets.token_hex(32),
            "TOLLKEY_DRAIN_SECONDS": str(DRAIN),
            "TOLLKEY_WORKERS": "1",
        }
        # Three ways to trust the same CA. `SSL_CERT_FILE` replaces the CA certificates of the distribution.
        system = {"SSL_CERT_FILE": str(ca)}
        databases = [
            {"DATABASE_URL": postgres.url("localhost", f"sslmode=verify-full&sslrootcert={ca}")},
            {"DATABASE_URL": postgres.url("localhost", "sslrootcert=system"), **system},
            {"DATABASE_URL": postgres.url("db.example", "hostaddr=127.0.0.1"), **system},
        ]
        call(tollkey, "migrate", **settings, **databases[0])
        check_failures(tollkey, settings, postgres, directory)
        replicas = [stack.enter_context(Replica(tollkey, {**settings, **database}, directory)) for database in databases]
        postgres.check_tls()
        nginx = stack.enter_context(Nginx(directory, [replica.address for replica in replicas]))
        token = call(tollkey, "token", "--account", "acme", **settings, **databases[0])
        operator = call(tollkey, "token", "--role", "operator", **settings, **databases[0])
        restart_under_load(nginx, replicas, token, operator)
        postgres.check_tls()


def restart_under_load(nginx, replicas, token, operator):
    """Restarts the replicas one after the other under load, and revokes keys meanwhile."""
    service_key = create(nginx.address, "/api/v1/service-keys", operator, {"name": "gateway"})["key"]
    keys = [create(nginx.address, "/api/v1/api-keys", token, {"name": f"key {number}"}) for number in range(3)]
    load = Load(nginx.address, service_key, keys[0]["api_key"])
    revoked = []

    def revoke(key):
        """Revokes a key through nginx. All replicas must reject it at once."""
        for replica in replicas:
            if not verify(replica.address, service_key, key["api_key"]):
                raise Failed(f"the replica at {replica.address} does not accept a new key")
        status, text = send(nginx.address, "POST", f"/api/v1/api-keys/{key['key_id']}/revoke", token, {})
        if status != 200:
            raise Failed(f"the revocation got {status}: {text}")
        for replica in replicas:
            if verify(replica.address, service_key, key["api_key"]):
                raise Failed(f"the replica at {replica.address} accepts a key after its revocation")
            status, _ = send(replica.address, "GET", "/api/v1/authz/forward-auth", key["api_key"])
            if status != 401:
                raise Failed(f"forward-auth at {replica.address} got {status} after the revocation of the key")
            revoked.append(replica.address)

    with load:
        began = time.monotonic()
        for number, replica in enumerate(replicas):
            load.wait_for(REQUESTS)
            if number == 1:
                revoke(keys[1])
            replica.terminate()
            if number == 2:
                # While this replica drains, it still has its lease.
                revoke(keys[2])
            replica.wait_for_exit()
            replica.start()
            load.wait_for(REQUESTS)
        seconds = time.monotonic() - began
    if load.failed:
        first = "\n".join(load.failed[:5])
        raise Failed(f"{len(load.failed)} of {load.sent} requests failed:\n{first}\n{nginx.log()}")
    print(f"{load.sent} requests through nginx in {seconds:.0f} s, of them {load.forwarded} to forward-auth, while "
          f"{len(replicas)} replicas were restarted: 0 failed")
    print(f"2 keys revoked: rejected by every replica in the next request ({len(revoked)} checks)")


class Load:
    """Clients that verify a key through nginx, each on one connection, from `with` to the end of it."""

    def __init__(self, address, service_key, key):
        self._address = address
        self._service_key = service_key
        self._key = key
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._clients = []
        self.sent = 0
        self.forwarded = 0
        self.failed = []

    def __enter__(self):
        self._clients = [threading.Thread(target=self._client, daemon=True) for _ in range(CLIENTS)]
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        for client in self._clients:
            client.join(LIMIT)
            if client.is_alive():
                self.failed.append("a client waits for a response")

    def wait_for(self, count):
        """Waits until this number of further requests was sent."""
        enough = self.sent + count
        wait_until(lambda: self.sent >= enough, f"{count} requests were sent; failed so far: {self.failed[:5]}")

    def _client(self):
        connection = connect(self._address)
        turn = 0
        while not self._is_over.is_set():
            turn += 1
            to_forward_auth = turn % 2 == 0
            try:
                if to_forward_auth:
                    status, text = exchange(connection, "GET", "/api/v1/authz/forward-auth", self._key)
                    is_good = status == 200
                else:
                    status, text = exchange(connection, "POST", "/api/v1/verify", self._service_key, {"key": self._key})
                    is_good = status == 200 and json.loads(text)["valid"] is True
                problem = None if is_good else f"{status} {text}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = repr(error)
                connection.close()
                connection = connect(self._address)
            with self._lock:
                self.sent += 1
                self.forwarded += to_forward_auth
                if problem:
                    self.failed.append(problem)
        connection.close()


def connect(address):
    host, port = address.split(":")
    return http.client.HTTPConnection(host, int(port), timeout=LIMIT)


def exchange(connection, method, path, credential, body=None):
    """Sends a request on a connection, and returns the status and the body of the response."""
    headers = {"Authorization": f"Bearer {credential}"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    return response.status, response.read().decode()


def send(address, method, path, credential, body=None):
    """Like `exchange`, on a connection of its own."""
    connection = connect(address)
    try:
        return exchange(connection, method, path, credential, body)
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"{method} {path} at {address}: {error!r}") from error
    finally:
        connection.close()


def create(address, path, credential, body):
    status, text = send(address, "POST", path, credential, body)
    if status != 201:
        raise Failed(f"POST {path} got {status}: {text}")
    return json.loads(text)


def verify(address, service_key, key):
    """Returns whether a server accepts the key."""
    status, text = send(address, "POST", "/api/v1/verify", service_key, {"key": key})
    if status != 200:
        raise Failed(f"/verify at {address} got {status}: {text}")
    return json.loads(text)["valid"]


def check_failures(tollkey, settings, postgres, directory):
    """Checks that problems with TLS are named, and end the command immediately."""
    other = directory / "other-ca.crt"
    create_ca(directory, "other-ca")
    hidden = directory / "hidden.crt"
    hidden.write_bytes(other.read_bytes())
    hidden.chmod(0o600)
    for host, parameters, words in (
        ("localhost", f"sslmode=verify-full&sslrootcert={other}", f"is not signed by a CA of {other}; set sslrootcert"),
        ("wrong.example", f"hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={directory / 'ca.crt'}",
         "is for localhost, not for the host in DATABASE_URL"),
        ("localhost", "sslmode=disable", "no encryption; set sslmode=verify-full"),
        ("localhost", f"sslmode=verify-full&sslrootcert={hidden}",
         f"the file {hidden} of sslrootcert: Permission denied (os error 13); let the user of this process read it"),
    ):
        as_nobody = as_user("nobody") if "hidden" in parameters else []
        if "hidden" in parameters and os.geteuid() != 0:
            hidden.chmod(0)
        began = time.monotonic()
        done = subprocess.run(
            [*as_nobody, tollkey, "migrate"], cwd="/", capture_output=True, text=True, check=False, timeout=LIMIT,
            env=clean({**settings, "DATABASE_URL": postgres.url(host, parameters), "TOLLKEY_DATABASE_WAIT_SECONDS": "40"}),
        )
        seconds = time.monotonic() - began
        if done.returncode == 0 or words not in done.stderr or postgres.password in done.stderr or seconds > 20:
            raise Failed(f"no error with {words!r} after {seconds:.1f} s: status {done.returncode}, {done.stderr}")
    print("4 problems with TLS are named and end the command")


def clean(settings):
    """Returns these settings and the environment variables of this process that do not affect what is tested."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)},
        # Without files of libpq of the user who runs the test.
        "HOME": "/nonexistent", **settings,
    }


def call(tollkey, *arguments, **settings):
    """Runs a command of the binary, and returns its output."""
    done = subprocess.run(
        [tollkey, *arguments], cwd="/", env=clean(settings), capture_output=True, text=True, check=False, timeout=LIMIT,
    )
    if done.returncode != 0:
        raise Failed(f"tollkey {arguments[0]} failed: {done.stderr}")
    return done.stdout.strip()


def create_ca(directory, name):
    """Creates `NAME.key` and `NAME.crt`."""
    environment.run(
        program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", f"/CN=Example {name}", "-keyout", directory / f"{name}.key", "-out", directory / f"{name}.crt", quiet=True,
    )
    return directory / f"{name}.crt"


def create_certificates(directory):
    """Creates a CA and the certificate of PostgreSQL. Returns the path of the CA's certificate."""
    ca = create_ca(directory, "ca")
    environment.run(
        program("openssl"), "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=example",
        "-keyout", directory / "server.key", "-out", directory / "server.csr", quiet=True,
    )
    names = directory / "names"
    names.write_text("subjectAltName=" + ",".join(f"DNS:{host}" for host in HOSTS) + "\n")
    environment.run(
        program("openssl"), "x509", "-req", "-in", directory / "server.csr", "-CA", ca, "-CAkey", directory / "ca.key",
        "-CAcreateserial", "-days", "2", "-extfile", names, "-out", directory / "server.crt", quiet=True,
    )
    return ca


def as_user(name):
    """Returns the beginning of a command that runs as this user."""
    return [program("runuser"), "-u", name, "--"] if os.geteuid() == 0 else []


def free_address(host="127.0.0.1"):
    with socket.socket() as listener:
        listener.bind((host, 0))
        return f"{host}:{listener.getsockname()[1]}"


def wait_until(is_done, what):
    ends = time.monotonic() + LIMIT
    while not is_done():
        if time.monotonic() > ends:
            raise Failed(f"not within {LIMIT} s: {what}")
        time.sleep(0.02)


class Postgres:
    """A PostgreSQL with a database `tollkey` and a role of that name, which needs TLS and a password."""

    def __init__(self, directory, ca):
        self._directory = directory
        self._ca = ca
        self._bin = postgres_programs()
        self._home = None
        self.password = secrets.token_hex(16)
        self._port = int(free_address().split(":")[1])

    def __enter__(self):
        # PostgreSQL does not run as root. Its directory belongs to its own user, and its socket needs a short path.
        self._home = Path(environment.run(*as_user("postgres"), "mktemp", "-d", "/tmp/tkpg.XXXXXX", quiet=True).strip())
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self):
        self._run("initdb", "-D", self._home / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C",
                  "--no-sync")
        for name in ("server.crt", "server.key"):
            self._write(name, (self._directory / name).read_text())
        self._write("pg_hba.conf", "local all postgres trust\nhostssl tollkey tollkey samehost scram-sha-256\n")
        self._write("postgresql.auto.conf", "\n".join((
            "listen_addresses = 'localhost'", f"port = {self._port}", f"unix_socket_directories = '{self._home}'",
            "ssl = on", "fsync = off", "password_encryption = 'scram-sha-256'", "",
        )))
        self._run("pg_ctl", "-D", self._home / "data", "-l", self._home / "log", "-w", "-t", LIMIT, "start")
        self._sql(f"CREATE ROLE tollkey LOGIN PASSWORD '{self.password}'", "postgres")
        self._sql("CREATE DATABASE tollkey OWNER tollkey ENCODING 'UTF8' TEMPLATE template0", "postgres")

    def __exit__(self, *_):
        if (self._home / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", self._home / "data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(self._home, ignore_errors=True)

    def _run(self, name, *arguments, **options):
        # Without a pipe, which the server would inherit.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [*map(str, (*as_user("postgres"), self._bin / name, *arguments))], cwd="/", stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, env=clean({"LC_ALL": "C"}), timeout=2 * LIMIT, check=False, **options,
            )
            output.seek(0)
            if done.returncode != 0:
                raise Failed(f"{name} failed: {output.read()}")
            return output.read()

    def _write(self, name, text):
        """Writes a file into the data directory, which only its user can read."""
        path = self._home / "data" / name
        path.touch(0o600)
        path.chmod(0o600)
        path.write_text(text)
        if os.geteuid() == 0:
            shutil.chown(path, "postgres", "postgres")

    def _sql(self, sql, database):
        return self._run("psql", "-h", self._home, "-p", self._port, "-U", "postgres", "-d", database, "-XAtqc", sql)

    def url(self, host, parameters):
        return f"postgres://tollkey:{self.password}@{host}:{self._port}/tollkey?{parameters}"

    def check_tls(self):
        """Checks that the replicas are connected over TLS."""
        versions = self._sql(
            "SELECT coalesce(version, 'none'), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
            "WHERE usename = 'tollkey' GROUP BY 1", "postgres").split()
        if not versions or any(not version.startswith("TLSv1.") for version in versions):
            raise Failed(f"not all connections use TLS: {versions}")
        print(f"connections to PostgreSQL by version of TLS: {', '.join(versions).replace('|', ' ')}")


def postgres_programs():
    """Returns the directory of the newest PostgreSQL."""
    path = shutil.which("initdb")
    if path:
        return Path(path).resolve().parent
    found = [directory for directory in Path("/usr/lib/postgresql").glob("*/bin") if (directory / "initdb").exists()]
    if not found:
        raise Missing("PostgreSQL is not installed (no initdb)")
    return max(found, key=lambda directory: float(directory.parent.name))


class Process:
    """A process with a log, which is killed at the end if it still runs."""

    def __init__(self, directory, name):
        self._log = directory / f"{name}.log"
        self._process = None

    def _launch(self, command, **options):
        with open(self._log, "a") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command], cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options,
            )

    def __exit__(self, *_):
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def log(self):
        return self._log.read_text()

    def _responds(self, address, path):
        """Returns whether a server responds with 200. Fails if the process has ended."""
        if self._process.poll() is not None:
            raise Failed(f"the process ended with {self._process.returncode}: {self.log()}")
        connection = connect(address)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class Replica(Process):
    def __init__(self, tollkey, settings, directory):
        self.address = free_address("127.0.0.1")
        super().__init__(directory, f"replica-{self.address}")
        self._tollkey = tollkey
        self._settings = {**settings, "TOLLKEY_LISTEN": self.address}

    def __enter__(self):
        self.start()
        return self

    def start(self):
        """Starts the replica and waits until it is ready."""
        self._launch([self._tollkey, "serve"], env=clean(self._settings))
        wait_until(lambda: self._responds(self.address, "/readyz"), f"the replica at {self.address} is ready")

    def terminate(self):
        self._process.terminate()

    def wait_for_exit(self):
        try:
            status = self._process.wait(LIMIT)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"the replica at {self.address} does not end after SIGTERM") from error
        if status != 0:
            raise Failed(f"the replica at {self.address} ended with {status}: {self.log()}")


class Nginx(Process):
    """nginx with the shipped configuration for replicas, at other addresses."""

    def __init__(self, directory, replicas):
        super().__init__(directory, "nginx")
        self.address = free_address("127.0.0.1")
        shipped = (ROOT / "examples/gateways/nginx-replicas/nginx.conf").read_text()
        for before, after in (
            ("listen 80;", f"listen {self.address};"),
            *((f"server {before} ", f"server {after} ") for before, after in zip(SHIPPED, replicas)),
        ):
            if before not in shipped:
                raise Failed(f"the configuration of nginx no longer has {before!r}")
            shipped = shipped.replace(before, after)
        self._home = directory / "nginx"
        self._home.mkdir()
        (self._home / "replicas.conf").write_text(shipped)
        user = "user root;\n" if os.geteuid() == 0 else ""
        (self._home / "nginx.conf").write_text(
            f"{user}daemon off;\nworker_processes 2;\npid nginx.pid;\nerror_log stderr warn;\nevents {{}}\nhttp {{\n"
            "access_log off;\nkeepalive_requests 1000000;\nclient_body_temp_path body;\nproxy_temp_path proxy;\n"
            "fastcgi_temp_path fastcgi;\nuwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\ninclude replicas.conf;\n}\n")

    def __enter__(self):
        self._launch([program("nginx"), "-e", "stderr", "-p", self._home, "-c", self._home / "nginx.conf"])
        wait_until(lambda: self._responds(self.address, "/livez"), "nginx responds")
        return self


if __name__ == "__main__":
    try:
        run(*sys.argv[1:2])
    except (Failed, Missing) as problem:
        sys.exit(f"replicas: {problem}")

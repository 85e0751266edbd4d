"""Runs the containers of the manifests of Kubernetes without a cluster: the migration, then a server, on PostgreSQL.

Each container is a process with the command, the variables, the secrets, the user and the read-only root file system of
its manifest; only the ports differ. The roles of the database are those of docs/deploying.md. Needs root and PostgreSQL.
Uses the program `tollkey` as the module `prometheus` does.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
from pathlib import Path

from environment import ROOT, Failed, Missing, program
from environment import run as execute
from kubernetes import EXAMPLE, environment, expect, kustomize, one, pods
from prometheus import free_port, get, server_program, wait_for

#: Enters a mount namespace in which all file systems are read-only, and mounts the secrets. $1: their directory, $2: the
#: mount path. The rest: the command.
CONTAINER = """
set -eu
secrets=$1 path=$2
shift 2
mount -t tmpfs tmpfs /run
mkdir -p "$path"
mount --bind "$secrets" "$path"
findmnt --noheadings --raw --output TARGET | grep -v -E '^/(proc|sys|dev)(/|$)' | while read -r target; do
    # Not one that another mount hides.
    ! mountpoint -q "$target" || mount -o remount,bind,ro "$target"
done
cd /
exec "$@"
"""
#: The warnings about the issuer of the example, which does not exist.
UNREACHABLE = ("fetch failed", "cannot fetch the issuer's keys")
OWNER = "tollkey_owner"
SERVER = "tollkey_server"


@contextlib.contextmanager
def postgres(directory):
    """Starts a PostgreSQL with the database `tollkey` of its owner, and yields its port."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        raise Missing("PostgreSQL is not installed")
    data, port = directory / "data", free_port()

    def as_postgres(name, *arguments, **options):
        return execute(program("runuser"), "-u", "postgres", "--", programs[-1] / name, *arguments, quiet=True, cwd="/", **options)

    data.mkdir()
    shutil.chown(data, "postgres", "postgres")
    as_postgres("initdb", "-D", data, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
    settings = f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    as_postgres("pg_ctl", "-D", data, "-l", data / "log", "-w", "-o", settings, "start")
    try:
        def sql(database, statements):
            as_postgres("psql", "-h", "127.0.0.1", "-p", port, "-v", "ON_ERROR_STOP=1", "-q", database, input=statements)

        sql("postgres", f"CREATE ROLE {OWNER} LOGIN; CREATE ROLE {SERVER} LOGIN; CREATE DATABASE tollkey OWNER {OWNER};")
        yield port, sql
    finally:
        as_postgres("pg_ctl", "-D", data, "-m", "immediate", "stop")


def secret(directory, files):
    """Writes a secret as Kubernetes mounts it: readable by the group of the pod."""
    directory.mkdir()
    for name, text in files.items():
        file = directory / name
        file.write_text(text)
        os.chown(file, 0, 10001)
        file.chmod(0o440)
    return directory


def command(resources, pod, secrets, tollkey, changes=()):
    """Returns the command and the variables of the container of a pod."""
    context, [container] = pod["spec"]["securityContext"], pod["spec"]["containers"]
    expect(container["command"][0] == "tollkey", "the command is not tollkey")
    variables = environment(resources, container)
    variables.update(changes)
    [mount] = container["volumeMounts"]
    return ([
        program("unshare"), "--mount", "sh", "-c", CONTAINER, "container", secrets, mount["mountPath"],
        program("setpriv"), f"--reuid={context['runAsUser']}", f"--regid={context['runAsGroup']}", "--clear-groups",
        "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all",
        "/usr/bin/env", "-i", *(f"{name}={value}" for name, value in variables.items()), tollkey, *container["command"][1:],
    ], container)


def granted():
    """Returns the rights of the server's role."""
    page = (ROOT / "docs" / "deploying.md").read_text()
    [statements] = re.findall(r"```sql\n(GRANT .*?)```", page, re.DOTALL)
    return statements


def run():
    if os.geteuid() != 0:
        raise Missing("mount namespaces need root")
    built = server_program()
    resources = kustomize(EXAMPLE)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        directory = Path(temporary)
        directory.chmod(0o755)  # other users run the program
        tollkey = directory / "tollkey"
        shutil.copy(built, tollkey)
        port, sql = stack.enter_context(postgres(directory))

        def url(role):
            return f"postgres://{role}@127.0.0.1:{port}/tollkey?sslmode=disable"

        server_secret = secret(directory / "server", {"database-url": url(SERVER), "sealing-secret": "an example secret: " + "0" * 32})
        owner_secret = secret(directory / "owner", {"database-url": url(OWNER)})
        migrate, _ = command(resources, pods(resources)["tollkey-migration"], owner_secret, tollkey)
        for _ in range(2):  # an update runs it again
            execute(*migrate, quiet=True, timeout=120)
        sql("tollkey", granted())
        serve(resources, server_secret, tollkey, directory)


def serve(resources, server_secret, tollkey, directory):
    """Starts a server, checks its probes, and stops it as Kubernetes does."""
    http, metrics = free_port(), free_port()
    pod = pods(resources)["tollkey"]
    arguments, container = command(resources, pod, server_secret, tollkey, {
        "TOLLKEY_LISTEN": f"0.0.0.0:{http}", "TOLLKEY_METRICS_LISTEN": f"0.0.0.0:{metrics}",
    })
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    drain = int(one(resources, "ConfigMap", container["envFrom"][0]["configMapRef"]["name"])["data"]["TOLLKEY_DRAIN_SECONDS"])
    log = directory / "server.log"

    def probe(name):
        """Returns whether a probe succeeds."""
        try:
            get(f"http://127.0.0.1:{metrics}{container[name]['httpGet']['path']}")
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            return False
        return True

    with open(log, "w") as output:
        server = subprocess.Popen([str(part) for part in arguments], stdout=output, stderr=subprocess.STDOUT)
    try:
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            wait_for(f"the success of the {name}", lambda: probe(name), log)
        expect("tollkey_ready 1" in get(f"http://127.0.0.1:{metrics}/metrics"), "tollkey_ready is not 1")
        uid = Path(f"/proc/{server.pid}/status").read_text().split("Uid:")[1].split()[0]
        expect(uid == "10001", f"the server runs as user {uid}")
        roots = re.findall(r"(?m)^\S+ / \S+ (\S+)", Path(f"/proc/{server.pid}/mounts").read_text())
        expect("ro" in roots[-1].split(","), f"the root file system is writable: {roots}")
        server.terminate()
        began = time.monotonic()
        wait_for("the failure of the readinessProbe", lambda: not probe("readinessProbe"), log)
        expect(probe("livenessProbe"), "the livenessProbe fails during the drain")
        expect(get(f"http://127.0.0.1:{http}/livez") == "ok", "the server accepts no requests during the drain")
        status = server.wait(timeout=grace)
        seconds = time.monotonic() - began
        expect(status == 0 and seconds >= drain, f"the server exited with {status} after {seconds:.1f} s:\n{log.read_text()[-4000:]}")
    except subprocess.TimeoutExpired as error:
        raise Failed(f"the server did not stop within {grace} s") from error
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
    entries = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    warnings = [entry for entry in entries if entry["level"] != "INFO" and not entry["message"].startswith(UNREACHABLE)]
    expect(entries and not warnings, f"the server logs warnings: {warnings}")
    print(f"migrated twice, served, and stopped after {seconds:.1f} s of {grace} s")

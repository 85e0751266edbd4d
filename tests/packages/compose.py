"""Checks the Compose file, and runs it with podman-compose: the commands of the docs, restrictions, TLS, and monitoring.

The official images are replaced by images with the programs of Debian that are configured in the same way. Debian has no
Grafana: its stand-in only checks that the files which Grafana reads exist and are readable. The image `tollkey` is that of
the module `image`, and TOLLKEY_TEST_BINARY applies to it.
"""

import ipaddress
import json
import os
import re
import resource
import shutil
import stat
import tempfile
import time
from pathlib import Path

import containers
import image
from containers import Network, buildah
from debian import documented, root
from environment import CACHE, ROOT, Failed, fresh, program
from environment import run as execute
from pypi import installed

PAGE = "installing.md"
COMPOSE = ROOT / "deploy" / "compose"
#: Services that end when they are done.
ONE_SHOT = {"migrate", "rights"}
#: The users of the secrets.
USERS = {"tollkey": 10001, "postgres": 999, "grafana": 472}
#: Capabilities that a service has.
CAPABILITIES = {"caddy": ["NET_BIND_SERVICE"]}
#: The bit of CAP_NET_BIND_SERVICE.
NET_BIND_SERVICE = 1 << 10
#: The address of Caddy for Tollkey.
PROXY = "172.30.80.2"
#: The paths that only gateways, subscribers and probes request.
INTERNAL = ("/api/v1/authz", "/api/v1/sync", "/livez", "/readyz")
#: How many seconds a start may take.
LIMIT = 120
PROGRAMS = ("busybox", "ca-certificates", "caddy", "postgresql-15", "prometheus", "wget")
#: podman before 4.6 cannot start a container whose required containers require others. podman-compose keeps the order itself.
PODMAN = """#!/bin/bash
for argument; do
    shift
    [[ $argument == --requires=* ]] || set -- "$@" "$argument"
done
exec podman "$@"
"""
#: What the entry point of the official image of PostgreSQL does with the settings that the Compose file uses.
POSTGRES = """#!/bin/bash
set -euo pipefail
if [ "$1" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username=postgres --pwfile="$POSTGRES_PASSWORD_FILE"
    echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
    pg_ctl -D "$PGDATA" -o "$(printf '%q ' "${@:2}" -c listen_addresses=)" -w start
    export PGPASSWORD="$(cat "$POSTGRES_PASSWORD_FILE")" PGUSER=postgres
    psql -v ON_ERROR_STOP=1 --no-password --no-psqlrc -d postgres -c "CREATE DATABASE $POSTGRES_DB"
    for file in /docker-entrypoint-initdb.d/*; do
        psql -v ON_ERROR_STOP=1 --no-password --no-psqlrc -d "$POSTGRES_DB" -f "$file"
    done
    pg_ctl -D "$PGDATA" -m fast -w stop
    unset PGPASSWORD PGUSER
fi
exec "$@"
"""
#: Grafana's image has no substitute in Debian.
GRAFANA = """#!/bin/sh
set -eu
cat "$GF_SECURITY_ADMIN_PASSWORD__FILE" /etc/grafana/provisioning/datasources/*.yaml >/dev/null
grep -q grafana "/etc/grafana/provisioning/dashboards/tollkey.yaml"
directory=$(sed -n 's/ *path: //p' /etc/grafana/provisioning/dashboards/tollkey.yaml)
grep -q '"panels"' "$directory"/*.json
touch /var/lib/grafana/grafana.db
mkdir -p /tmp/www/api
echo ok >/tmp/www/api/health
exec busybox httpd -f -p 3000 -h /tmp/www
"""
IMAGES = {
    "postgres:15-bookworm": """
ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/data LANG=C.UTF-8
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
ENTRYPOINT ["postgres-entrypoint"]
CMD ["postgres"]
""",
    "caddy:2": """
ENV XDG_CONFIG_HOME=/config XDG_DATA_HOME=/data
CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]
""",
    "prom/prometheus:v2.53.5": """
USER nobody
WORKDIR /prometheus
VOLUME /prometheus
ENTRYPOINT ["prometheus"]
""",
    "grafana/grafana:12.0.2": """
USER 472
ENTRYPOINT ["grafana-stand-in"]
""",
}


def run():
    services = check_file()
    check_rights()
    tools = installed("compose")
    image.build()
    create_images(services)
    with tempfile.TemporaryDirectory() as temporary, Network() as network:
        directory = Path(temporary)
        # Beside a copy of the files, because `setup` creates files beside it.
        for name in ("compose", "monitoring"):
            shutil.copytree(ROOT / "deploy" / name, directory / "deploy" / name, ignore=shutil.ignore_patterns("secrets", ".env"))
        project = Project(directory, network, tools / "bin" / "podman-compose", services)
        project.end()
        try:
            project.run()
        finally:
            project.end()


def expect(condition, message):
    if not condition:
        raise Failed(message)


def check_file():
    """Checks the Compose file, and returns its services."""
    file = COMPOSE / "compose.yaml"
    execute(installed("release") / "bin" / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file, quiet=True)
    convert = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))"
    content = json.loads(execute(installed("compose") / "bin" / "python3", "-c", convert, input=file.read_text(), quiet=True))
    services = content["services"]
    settings = set(re.findall(r"(?m)^\| `([A-Z0-9_]+)` \|", (ROOT / "docs" / "settings.md").read_text()))
    used = set()
    for name, service in services.items():
        one_shot = name in ONE_SHOT
        for field, expected in {
            "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"],
            "cap_add": CAPABILITIES.get(name), "restart": "no" if one_shot else "unless-stopped",
            "privileged": None, "pull_policy": "never" if service["image"] == "tollkey" else None,
        }.items():
            expect(service.get(field) == expected, f"the service {name} has {field} {service.get(field)!r}")
        expect("max-size" in service["logging"]["options"], f"the log of the service {name} is unbounded")
        if not one_shot:
            expect("test" in service["healthcheck"], f"the service {name} has no health check")
        for other, how in service.get("depends_on", {}).items():
            condition = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            expect(how["condition"] == condition, f"the service {name} depends on {other} with {how}")
        for port in service.get("ports", []):
            expect(name == "caddy" or port.startswith("127.0.0.1:"), f"the service {name} publishes {port}")
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            if source.startswith("."):
                expect((COMPOSE / source).resolve().is_file(), f"the service {name} mounts {source}, which does not exist")
                expect(mode == ["ro"], f"the service {name} can write to {source}")
            else:
                expect(source in content["volumes"], f"the service {name} mounts the unknown volume {source}")
        for secret in service.get("secrets", []):
            expect(secret in content["secrets"], f"the service {name} names the unknown secret {secret}")
            used.add(secret)
        for variable, value in service.get("environment", {}).items():
            if variable.startswith(("TOLLKEY_", "DATABASE_")):
                expect(variable in settings, f"{variable} is not a setting")
                expect("_SECRET" not in variable or variable.endswith("_FILE"), f"the service {name} has a secret in {variable}")
            for path in re.findall(r"/run/secrets/([\w.-]+)", value):
                expect(path in service["secrets"], f"the service {name} has no secret {path}")
        expect(re.fullmatch(r"[a-z]+(/[a-z]+)?(:\S+)?", service["image"]), f"the image {service['image']} names a registry")
    expect(used == set(content["secrets"]), f"no service uses the secrets {set(content['secrets']) - used}")
    expect(ONE_SHOT < set(services), f"there are only the services {list(services)}")
    trusted = services["tollkey"]["environment"]["TOLLKEY_TRUSTED_PROXIES"]
    expect(trusted == f"{services['caddy']['networks']['front']['ipv4_address']}/32", f"Tollkey trusts {trusted}")
    [addresses] = content["networks"]["front"]["ipam"]["config"]
    caddy = ipaddress.ip_address(services["caddy"]["networks"]["front"]["ipv4_address"])
    expect(caddy in ipaddress.ip_network(addresses["subnet"]), f"{caddy} is not an address of the network")
    # Docker gives other containers the first free address, before Caddy starts.
    expect(caddy not in ipaddress.ip_network(addresses["ip_range"]), f"another container can get the address {caddy}")
    drain = int(services["tollkey"]["environment"]["TOLLKEY_DRAIN_SECONDS"])
    grace = services["tollkey"]["stop_grace_period"]
    expect(grace == f"{drain + 25}s", f"Tollkey has {grace} to stop")
    return services


def check_rights():
    """The role of the server has the rights of the docs."""
    def statements(text):
        return set(re.findall(r"(?m)^GRANT .*;$", text))

    described = statements((ROOT / "docs" / "deploying.md").read_text())
    granted = statements((COMPOSE / "postgres" / "rights.sql").read_text())
    expect(granted and granted == described, f"rights.sql differs from docs/deploying.md: {granted ^ described}")


def create_images(services):
    """Creates substitutes for the official images."""
    wanted = {service["image"] for service in services.values()} - {"tollkey"}
    expect(wanted == set(IMAGES), f"the Compose file has the images {wanted}")
    containers.create("compose-programs", [PROGRAMS, Path(__file__).read_text()], fill)
    for name, config in IMAGES.items():
        buildah("build", "--quiet", "--format", "docker", "--tag", name, "--file", "-", fresh_context(),
                input=f"FROM localhost/compose-programs\n{config}")


def fresh_context():
    directory = fresh(CACHE / "compose-context")
    directory.mkdir()
    return directory


def fill(directory):
    """Fills the image with the programs, users and directories of the official images."""
    containers.copy(root("compose-programs", PROGRAMS), directory)
    for name in ("passwd", "group"):
        file = directory / "etc" / name
        text = re.sub(r"(?m)^postgres:.*\n|^[^:]*:x:(999|472):.*\n", "", file.read_text())
        rest = ":{0}::/:/bin/sh" if name == "passwd" else ":"
        file.write_text(text + "".join(f"{user}:x:{USERS[user]}{rest.format(USERS[user])}\n" for user in ("postgres", "grafana")))
    shutil.rmtree(directory / "etc/postgresql")
    for path in ("var/lib/postgresql", "run/postgresql"):
        shutil.rmtree(directory / path)
    for path, owner in {
        "var/lib/postgresql/data": 999, "run/postgresql": 999, "docker-entrypoint-initdb.d": 0, "etc/postgresql": 0, "data": 0, "config": 0,
        "prometheus": 65534, "var/lib/grafana": 472, "etc/grafana": 0,
    }.items():
        (directory / path).mkdir(parents=True)
        os.chown(directory / path, owner, owner)
    for name, text in (("postgres-entrypoint", POSTGRES), ("grafana-stand-in", GRAFANA)):
        script = directory / "usr/local/bin" / name
        script.write_text(text)
        script.chmod(0o755)
    # As in the official image.
    execute(program("setcap"), "cap_net_bind_service=+ep", directory / "usr/bin/caddy")


class Project:
    """The services of the Compose file in a network namespace of their own."""

    def __init__(self, directory, network, tool, services):
        self._root = directory
        self._directory = directory / "deploy" / "compose"
        self._network = network
        self._services = services
        self._settings = dict(containers.settings())
        networks = containers.DIRECTORY / "networks"
        # podman would raise the limits above those of this machine, which root cannot do everywhere.
        limits = []
        for name, wanted in (("nofile", 65536), ("nproc", 32768)):
            _, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            limits.append(f"{name}={limit}:{limit}")
        runtime = 'runtime = "runc"\n' if shutil.which("runc") else ""
        # Containers find each other by name only with netavark.
        self._settings["CONTAINERS_CONF"] = str(containers.write("compose.conf", f"""\
[containers]
default_ulimits = {json.dumps(limits)}
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
{runtime}[network]
network_backend = "netavark"
network_config_dir = "{networks}"
"""))
        wrapper = containers.write("podman", PODMAN)
        wrapper.chmod(0o755)
        self._functions = (
            f'docker() {{ if [ "$1" = compose ]; then shift; "{tool}" --in-pod false --podman-path "{wrapper}" "$@"; else podman "$@"; fi; }}\n'
            'sudo() { "$@"; }\n'
        )

    def sh(self, script, *, cwd=None, **variables):
        """Runs commands of the docs in the directory of the Compose file."""
        command = ["bash", "-euo", "pipefail", "-c", self._functions + script]
        return execute(*self._network.command(*command), cwd=cwd or self._directory, env={**self._settings, **variables},
                       quiet=True, timeout=600)

    def podman(self, *arguments):
        return execute(*self._network.command(program("podman"), *arguments), env=self._settings, quiet=True, timeout=LIMIT).strip()

    def container(self, service):
        """Returns the ID of the container of a service."""
        found = self.podman("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.service={service}").split()
        expect(len(found) == 1, f"the service {service} has {len(found)} containers")
        return found[0]

    def logs(self, service):
        return execute("bash", "-c", 'exec "$@" 2>&1', "logs", *self._network.command(
            program("podman"), "logs", self.container(service)), env=self._settings, quiet=True)

    def end(self):
        """Deletes what a test, also an earlier one, has created."""
        label = "label=com.docker.compose.project=tollkey"
        if found := self.podman("ps", "--all", "--quiet", "--filter", label).split():
            self.podman("rm", "--force", "--time", "0", *found)
        for kind in ("volume", "network"):
            if found := self.podman(kind, "ls", "--quiet", "--filter", label).split():
                self.podman(kind, "rm", *found)

    def run(self):
        start, stop = documented(PAGE, "compose-start"), documented(PAGE, "compose-stop")
        began = time.monotonic()
        self.sh(start, cwd=self._root)
        self.check_secrets()
        self.wait_until_healthy()
        story = self.story()
        print(f"started, and a key created and verified in {time.monotonic() - began:.0f} s", flush=True)
        self.check_paths(story["CA"])
        self.check_restrictions()
        self.check_database()
        self.check_monitoring()
        self.check_logs()
        self.sh(stop)
        # The second start migrates again, and has the data of the first one.
        self.sh("docker compose up --detach")
        self.wait_until_healthy()
        self.check_decision(documented(PAGE, "compose-verify"), **story)
        container = self.container("tollkey")
        began = time.monotonic()
        self.sh("docker compose stop tollkey")
        seconds = time.monotonic() - began
        state = json.loads(self.podman("inspect", container))[0]["State"]
        expect(state["ExitCode"] == 0 and 5 <= seconds < 30, f"the server stopped with {state['ExitCode']} after {seconds:.1f} s")
        print(f"the server stopped after {seconds:.1f} s", flush=True)

    def secrets(self):
        return {path.name: path for path in (self._directory / "secrets").iterdir()}

    def check_secrets(self):
        """Each secret is readable by one user only, and `setup` does not replace it."""
        files = self.secrets()
        owners = {}
        for service in self._services.values():
            user = {"tollkey": "tollkey", "postgres:15-bookworm": "postgres"}.get(service["image"], "grafana")
            for name in service.get("secrets", []):
                owners.setdefault(name, set()).add(USERS[user])
        expect(set(files) == set(owners), f"setup creates {sorted(files)}, and the services use {sorted(owners)}")
        for name, path in files.items():
            status = path.stat()
            if name.endswith(".crt"):
                expect(stat.S_IMODE(status.st_mode) == 0o444, f"{name} has the mode {status.st_mode:o}")
            else:
                expect(stat.S_IMODE(status.st_mode) == 0o400, f"{name} has the mode {status.st_mode:o}")
                expect(owners[name] == {status.st_uid}, f"{name} belongs to {status.st_uid}, and {owners[name]} read it")
        before = {name: path.read_bytes() for name, path in files.items()}
        output = self.sh("! ./setup 2>&1")
        expect("exists, and nothing was changed" in output, f"a second setup prints {output}")
        after = {name: path.read_bytes() for name, path in self.secrets().items()}
        expect(before == after, "a second setup changes the secrets")
        execute("openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "postgres", "-CAfile",
                files["ca.crt"], files["postgres.crt"], quiet=True)

    def wait_until_healthy(self):
        """Runs the health checks of the services, and waits until each succeeds."""
        for name in self._services:
            container = self.container(name)
            if name in ONE_SHOT:
                state = json.loads(self.podman("inspect", container))[0]["State"]
                expect(state["Status"] == "exited" and state["ExitCode"] == 0, f"{name} is {state['Status']}:\n{self.logs(name)}")
                continue
            deadline = time.monotonic() + LIMIT
            while self.sh(f"podman healthcheck run {container} >/dev/null 2>&1 && echo healthy || true").strip() != "healthy":
                expect(time.monotonic() < deadline, f"{name} is not healthy within {LIMIT} s:\n{self.logs(name)[-4000:]}")
                time.sleep(1)

    def story(self):
        """Creates and verifies a key as documented, and returns the variables of its shell."""
        names = ("BASE", "CA", "TOKEN", "KEY", "SERVICE")
        output = self.sh(documented(PAGE, "compose-first-key") + "".join(f'echo "${name}"\n' for name in names))
        story = dict(zip(names, output.splitlines()[-len(names):]))
        self.check_decision(documented(PAGE, "compose-verify"), **story)
        return story

    def check_decision(self, script, **story):
        output = self.sh(script, **story)
        decision = json.loads(output.splitlines()[-1])
        expect(decision["valid"] is True, f"the key has the decision {decision}")

    def check_paths(self, ca):
        """Caddy passes on each path of the API except those of gateways, subscribers and probes."""
        def get(path, option):
            return self.sh(f"curl -sS --path-as-is --cacert '{ca}' -o /dev/null {option} 'https://localhost{path}'")

        def passed_on(path):
            # A response of Tollkey has an ID.
            return re.search(r"(?mi)^x-request-id:", get(path, "-D -")) is not None

        operations = list(json.loads((ROOT / "openapi" / "tollkey.json").read_text())["paths"])
        for template in [*operations, "/", "/v1/account/api-keys", "/dashboard/keys", "/docs/index.html"]:
            path = re.sub(r"\{\w+\}", "x", template)
            internal = template.startswith(INTERNAL)
            expect(passed_on(path) is not internal, f"Caddy passes on {path}" if internal else f"Caddy does not pass on {path}")
        for path in ("/api/v1/verify/../authz/forward-auth", "/docs/%2e%2e/api/v1/sync", "//api/v1/authz/forward-auth",
                     "/api/v1/authz/ext-authz/-/../../../account/x", "/api/v1/authz/ext-authz/-/%2e%2e/%2E./../account/x"):
            status = get(path, "-w '%{http_code}'")
            expect(status == "404", f"the path {path} has the status {status}")

    def check_restrictions(self):
        """Each container has the restrictions of its service."""
        for name, service in self._services.items():
            if name in ONE_SHOT:
                continue
            container = self.container(name)
            expect(json.loads(self.podman("inspect", container))[0]["HostConfig"]["ReadonlyRootfs"], f"{name} has a writable root")
            status = self.podman("exec", container, "cat", "/proc/1/status")
            capabilities = NET_BIND_SERVICE if name in CAPABILITIES else 0
            user = {"postgres": 999, "tollkey": 10001, "caddy": 0, "prometheus": 65534, "grafana": 472}[name]
            for field, expected in (("CapBnd", f"{capabilities:016x}"), ("NoNewPrivs", "1"), ("Uid", str(user))):
                values = set(re.search(rf"(?m)^{field}:\s+(.*)$", status)[1].split())
                expect(values == {expected}, f"the service {name} has {field} {values}")

    def psql(self, statement):
        return self.podman("exec", self.container("postgres"), "psql", "--no-psqlrc", "-At", "-U", "postgres", "tollkey", "-c", statement)

    def check_database(self):
        """All connections of Tollkey have TLS, and no other connection is accepted. The server's role owns nothing."""
        found = self.psql("SELECT bool_and(ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
                          "WHERE usename LIKE 'tollkey%'")
        expect(re.fullmatch(r"t\|[1-9]\d*", found), f"the connections are {found}")
        expect(self.psql("SELECT count(*) FROM pg_tables WHERE tableowner = 'tollkey_server'") == "0", "the server owns tables")
        expect(self.psql("SELECT has_schema_privilege('tollkey_server', 'public', 'CREATE')") == "f", "the server can create tables")
        container = self.container("postgres")
        address = self.podman("inspect", container, "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
        for mode, expected in (("disable", "no pg_hba.conf entry"), ("require", "password authentication failed")):
            for role in ("tollkey_server", "tollkey_owner"):
                output = self.sh(f"! podman exec --env PGPASSWORD=wrong {container} psql "
                                 f"'host={address} user={role} dbname=tollkey sslmode={mode}' -c 'SELECT 1' 2>&1")
                expect(expected in output, f"a connection of {role} with sslmode={mode} ends with {output}")
        # The address of the client, and not that of Caddy, is in the audit log.
        found = self.psql("SELECT DISTINCT ip FROM audit_log WHERE ip IS NOT NULL")
        expect(found and PROXY not in found, f"the audit log has the addresses {found!r}")

    def check_monitoring(self):
        """Prometheus scrapes the server, and has loaded the rules."""
        container = self.container("prometheus")
        deadline = time.monotonic() + LIMIT
        while "=> 1 @" not in (found := self.podman("exec", container, "promtool", "query", "instant", "http://127.0.0.1:9090",
                                                    'up{job="tollkey"}')):
            expect(time.monotonic() < deadline, f"Prometheus has {found!r}:\n{self.logs('prometheus')[-4000:]}")
            time.sleep(1)
        rules = self.podman("exec", container, "wget", "-q", "-O", "-", "http://127.0.0.1:9090/api/v1/rules")
        expect(len(json.loads(rules)["data"]["groups"]) > 0, "Prometheus has no rules")

    def check_logs(self):
        """No log has a secret, and those of Tollkey and PostgreSQL have no warnings."""
        secrets = [path.read_text().strip() for name, path in self.secrets().items() if not name.endswith((".crt", ".key"))]
        for name in self._services:
            log = self.logs(name)
            expect(not any(secret in log for secret in secrets), f"the log of {name} has a secret")
            if name in ("tollkey", "migrate"):
                # podman before 4.6 does not wait for the health check of PostgreSQL, but `migrate` does.
                warnings = [line for line in log.splitlines() if re.search('"level":"(WARN|ERROR)"', line)
                            and not (name == "migrate" and "waiting for the database" in line)]
                expect(not warnings, f"the log of {name} has warnings:\n" + "\n".join(warnings))
            if name == "postgres":
                # The test has caused these.
                caused = ("no pg_hba.conf entry", "password authentication failed")
                errors = [line for line in log.splitlines() if re.search(r"\b(ERROR|FATAL|PANIC):", line)]
                errors = [line for line in errors if not any(text in line for text in caused)]
                expect(not errors, "the log of postgres has errors:\n" + "\n".join(errors))

"""Lets Prometheus scrape a running server, and evaluates the rules and the dashboard.

Uses the program `tollkey` that was built last in `target/release` or `target/debug`, or TOLLKEY_TEST_BINARY.
"""

import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

import monitoring
from environment import TARGET, Failed, program

#: How long to wait for a start, and for the series of rules, which are evaluated twice a second here.
LIMIT = 60
#: The alerts that fire because the test stops the server.
EXPECTED = {"TollkeyDown", "TollkeyNoReplicaReady"}


def server_program():
    """Returns the given server, or the one that was built last for release or debugging."""
    if given := os.environ.get("TOLLKEY_TEST_BINARY"):
        return Path(given)
    built = [path for profile in ("release", "debug") if (path := TARGET / profile / "tollkey").exists()]
    if not built:
        raise Failed(f"no server: build one with `cargo build`, or set TOLLKEY_TEST_BINARY (searched {TARGET})")
    return max(built, key=lambda path: path.stat().st_mtime)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def process(*command, directory, log, **settings):
    """Runs a program until the end of the block. Its output goes to the file `log`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TOLLKEY_", "DATABASE_"))}
    with open(directory / log, "w") as output:
        running = subprocess.Popen([str(part) for part in command], cwd=directory, env={**environment, **settings},
                                   stdout=output, stderr=subprocess.STDOUT)
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(timeout=30)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def get(url):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as response:
        return response.read().decode()


def wait_for(what, condition, log):
    """Waits until the condition returns a value, and returns it."""
    end = time.monotonic() + LIMIT
    while True:
        try:
            if found := condition():
                return found
        except OSError:
            pass  # not listening yet
        if time.monotonic() > end:
            raise Failed(f"{what} did not happen within {LIMIT} s:\n{log.read_text()[-4000:]}")
        time.sleep(0.2)


def query(prometheus, expression):
    """Returns the series of an expression, now."""
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        return json.loads(get(url))["data"]["result"]
    except urllib.error.HTTPError as error:
        raise Failed(f"Prometheus rejects {expression}: {error.read().decode()}") from error


def configuration(directory, metrics):
    """Writes the example configuration with the address of the server, and short intervals."""
    text = (monitoring.MONITORING / "prometheus.yml").read_text()
    for old, new in (("tollkey:9090", f"127.0.0.1:{metrics}"), ("scrape_interval: 15s", "scrape_interval: 500ms"),
                     ("evaluation_interval: 15s", "evaluation_interval: 500ms")):
        if old not in text:
            raise Failed(f"prometheus.yml does not contain {old}")
        text = text.replace(old, new)
    file = directory / "prometheus.yml"
    file.write_text(text)
    (directory / "tollkey.rules.yml").write_text(monitoring.RULES.read_text())
    return file


def verify(url, key):
    """Presents an unknown key, so that all metrics of requests have counts."""
    request = urllib.request.Request(f"{url}/api/v1/whoami", headers={"Authorization": f"Bearer {key}"})
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            return
        raise
    raise Failed("an unknown key is accepted")


def run():
    collector = program("prometheus")
    http, metrics, web = free_port(), free_port(), free_port()
    url, prometheus = f"http://127.0.0.1:{http}", f"http://127.0.0.1:{web}"
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        directory = Path(temporary)
        server = process(server_program(), "serve", directory=directory, log="server.log",
                         TOLLKEY_LISTEN=f"127.0.0.1:{http}", TOLLKEY_METRICS_LISTEN=f"127.0.0.1:{metrics}",
                         DATABASE_URL="sqlite://tollkey.db")
        stopping = stack.enter_context(server)
        wait_for("the start of the server", lambda: get(f"http://127.0.0.1:{metrics}/readyz"), directory / "server.log")
        log = directory / "prometheus.log"
        stack.enter_context(process(
            collector, f"--config.file={configuration(directory, metrics)}", f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{web}", directory=directory, log=log.name,
        ))
        wait_for("a scrape", lambda: query(prometheus, 'up{job="tollkey"} == 1'), log)

        def has_series():
            verify(url, f"ks_live_{'a' * 32}")
            return query(prometheus, "job:tollkey_http_errors:ratio_rate5m") and query(prometheus, "job:tollkey_verifications_unknown:rate5m > 0")

        wait_for("series of the rules", has_series, log)
        time.sleep(2)
        empty = [text for text in monitoring.expressions(monitoring.dashboard()) if not query(prometheus, text)]
        # The annotation shows restarts, of which there were none.
        if [text for text in empty if not text.startswith("changes(process_start_time_seconds")]:
            raise Failed("expressions of the dashboard without series:\n" + "\n".join(empty))
        groups = json.loads(get(f"{prometheus}/api/v1/rules"))["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        failing = [f"{rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"]
        active = [rule["name"] for rule in rules if rule["type"] == "alerting" and rule["state"] != "inactive"]
        if failing or active:
            raise Failed(f"rules that fail: {failing}; alerts of a server that works: {active}")

        stopping.terminate()
        stopping.wait(timeout=30)
        names = wait_for("an alert about a server that has stopped", lambda: EXPECTED <= alerts(prometheus) and alerts(prometheus), log)
        if names != EXPECTED:
            raise Failed(f"other alerts of a server that has stopped: {sorted(names - EXPECTED)}")
        print(f"{len(rules)} rules and the dashboard have series, and a stopped server has the alerts {', '.join(sorted(names))}")


def alerts(prometheus):
    """Returns the names of the pending and firing alerts."""
    found = json.loads(get(f"{prometheus}/api/v1/alerts"))["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in found}

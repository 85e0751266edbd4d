"""Runs commands, and finds programs and directories."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve()
#: Everything that is installed, downloaded or generated.
CACHE = TARGET / "packages"
#: The longest time that a command may take, in seconds: a release build from scratch on a slow machine.
LIMIT = 3600


class Missing(Exception):
    """Something that the tests need is not installed."""


class Failed(Exception):
    """A check has failed."""


def run(*command, cwd=None, env=None, quiet=False, input=None, timeout=LIMIT):
    """Runs a command, and returns what it wrote to stdout.

    Without `quiet`, the output is also shown as it is written. With `quiet`, all output is shown only if the command
    fails. `env` adds variables to those of this process. Fails if the command does not end within `timeout` seconds.
    """
    command = [str(part) for part in command]
    name = Path(command[0]).name
    settings = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1"}
    settings.update({key: str(value) for key, value in (env or {}).items()})
    with tempfile.TemporaryFile("w+") as stdin, tempfile.TemporaryFile("w+", errors="replace") as stderr:
        stdin.write(input or "")
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                command, cwd=cwd, env=settings, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr if quiet else None,
                text=True, errors="replace", start_new_session=True,
            )
        except FileNotFoundError as error:
            raise Missing(f"{name} is not installed") from error
        late = threading.Event()

        def end():
            late.set()
            os.killpg(process.pid, 9)

        timer = threading.Timer(timeout, end)
        timer.start()
        output = []
        try:
            for line in process.stdout:
                output.append(line)
                if not quiet:
                    print(line, end="", flush=True)
            status = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
        if status != 0:
            stderr.seek(0)
            if quiet:
                print("".join(output) + stderr.read(), end="", file=sys.stderr, flush=True)
            raise Failed(f"{name} ran longer than {timeout} s" if late.is_set() else f"{name} failed with status {status}")
    return "".join(output)


def program(name):
    """Returns the path of a program, or raises `Missing`."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")
    if path is None:
        raise Missing(f"{name} is not installed")
    return Path(path)


def fresh(directory):
    """Deletes a directory, and returns it. Its parent exists afterwards."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    return directory

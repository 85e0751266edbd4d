"""Builds the Debian package, and installs, uses, upgrades, removes and purges it on a Debian that systemd has booted.

The commands are those of docs/installing.md and docs/upgrading.md. Needs debootstrap and systemd-nspawn.

Variables: TOLLKEY_TEST_DEB names a package to test instead of building one. The upgrade starts from a package of the
commit before, or of TOLLKEY_TEST_PREVIOUS_COMMIT, or from TOLLKEY_TEST_PREVIOUS_DEB, which must have a lower version.
"""

import os
import re
import shutil
import time
from pathlib import Path

from debian import Machine, copy, documented, root
from environment import CACHE, ROOT, TARGET, Failed, Missing, fresh, program
from environment import run as execute

PACKAGES = (
    "systemd", "systemd-sysv", "ca-certificates", "curl", "fish", "openssl", "procps", "sudo", "zsh",
)
TOOLS = CACHE / "tools"
#: The package in the machine, relative to the directory in which the documented commands run.
IN_MACHINE = "root/target/debian"
#: The highest result of `systemd-analyze security`, times ten.
EXPOSURE = 20
#: How many seconds installing the package, creating a key and verifying it may take.
STORY_LIMIT = 60
SETTINGS = "/etc/tollkey/tollkey.toml"


def run():
    """Tests the package; see the module."""
    machine_root = root("deb", PACKAGES)
    package = current()
    lint(package)
    with Machine(copy(machine_root, "deb-new")) as machine:
        installation(machine, package)
        unit(machine)
        completions(machine)
        settings(machine)
        unix_socket(machine)
        stopping(machine)
        removal(machine, package)
    old = previous()
    with Machine(copy(machine_root, "deb-upgrade")) as machine:
        upgrade(machine, old, package)


def build_environment(target=TARGET):
    return {
        "CARGO_TARGET_DIR": target, "CARGO_INSTALL_ROOT": TOOLS,
        "PATH": f"{TOOLS / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }


def current():
    """Returns the package of this checkout."""
    given = os.environ.get("TOLLKEY_TEST_DEB")
    if given:
        return Path(given).resolve()
    program("cargo")
    execute("bash", "-euc", documented("installing.md", "deb-build"), cwd=ROOT, env=build_environment())
    # cargo-deb deletes it when it builds the previous package.
    kept = fresh(CACHE / "current-deb")
    kept.mkdir()
    return Path(shutil.copy(the_package(TARGET / "debian"), kept))


def the_package(directory):
    found = list(directory.glob("tollkey_*.deb"))
    if len(found) != 1:
        raise Failed(f"{directory} has {len(found)} packages")
    return found[0]


def previous():
    """Returns a package of the commit before. If that has no package, its binary gets this commit's other files."""
    given = os.environ.get("TOLLKEY_TEST_PREVIOUS_DEB")
    if given:
        return Path(given).resolve()
    checkout = fresh(CACHE / "previous")
    checkout.mkdir()
    archive = CACHE / "previous.tar"
    commit = os.environ.get("TOLLKEY_TEST_PREVIOUS_COMMIT") or "HEAD~1"
    execute("git", "archive", "--output", archive, commit, cwd=ROOT)
    # With the current time, because cargo compares the times of files.
    execute("tar", "--extract", "--touch", "--file", archive, cwd=checkout)
    settings = build_environment()
    result = fresh(CACHE / "previous-deb")
    result.mkdir()
    options = ["--deb-revision", "0", "--output", result]
    if (checkout / "deploy/debian/tollkey.service").exists():
        execute("cargo", "xtask", "deb", *options, cwd=checkout, env=settings)
        return the_package(result)
    execute("cargo", "build", "--release", "--package", "tollkey-server", "--features", "pg-tls,grpc", cwd=checkout,
            env=settings)
    execute("cargo", "xtask", "package-files", cwd=ROOT, env=settings)
    # A target directory with only the binary of that commit.
    target = fresh(CACHE / "previous-target") / "release"
    target.mkdir(parents=True)
    shutil.copy(TARGET / "release/tollkey", target)
    execute("cargo", "deb", "--package", "tollkey-server", "--no-build", *options, cwd=ROOT,
            env=build_environment(target.parent))
    return the_package(result)


def lint(package):
    """Checks the content of the package."""
    size = package.stat().st_size / 1e6
    print(f"-- {package.name}: {size:.1f} MB", flush=True)
    version = re.search(r'(?m)^version = "(.*)"$', (ROOT / "Cargo.toml").read_text())[1]
    changelog = (ROOT / "deploy" / "debian" / "changelog").read_text()
    expect(changelog.startswith(f"tollkey ({version}-1) "), f"deploy/debian/changelog has no entry for {version}")
    listing = execute("dpkg-deb", "--contents", package, quiet=True)
    pages = set(re.findall(r"man1/(\S+)\.1\.gz", listing))
    for page in ("tollkey", "tollkey-serve", "tollkey-service-key", "tollkey-service-key-create"):
        expect(page in pages, f"there is no man page {page}")
    try:
        lintian = program("lintian")
    except Missing as missing:
        print(f"-- not checked: {missing}", flush=True)
        return
    execute(lintian, "--allow-root", "--fail-on", "error,warning", "--profile", "debian", "--tag-display-limit", "0",
            "--suppress-tags", ",".join(ACCEPTED), package)


#: Reports of lintian that do not apply.
ACCEPTED = (
    # The package is not uploaded to Debian.
    "initial-upload-closes-no-bugs",
    # The description of the crate.
    "description-synopsis-starts-with-article",
    # tollkey.toml may contain secrets.
    "non-standard-file-perm",
)


def place(machine, package):
    """Copies the package to where the documented commands expect it. The machine sees it immediately."""
    directory = fresh(machine.directory / IN_MACHINE)
    directory.mkdir()
    shutil.copy(package, directory)


def story(machine, before=""):
    """Creates and verifies a key, and stores both for `verify`."""
    machine.sh(
        before + documented("installing.md", "deb-first-key")
        + 'printf "%s\\n" "BASE=$BASE" "KEY=$KEY" "SERVICE=$SERVICE" >/root/story\n',
        quiet=True,
    )
    verify(machine)


def verify(machine):
    """Verifies the key of the story."""
    response = machine.sh(f". /root/story\n{documented('installing.md', 'deb-verify')}", quiet=True)
    expect('"valid":true' in response, f"the key is not valid: {response}")


def installation(machine, package):
    """Installs the package, and creates and verifies a key: the story of the documentation."""
    print("-- installation", flush=True)
    place(machine, package)
    began = time.monotonic()
    machine.sh(documented("installing.md", "deb-install"), quiet=True)
    story(machine)
    took = time.monotonic() - began
    print(f"package installed, service running, key created and verified in {took:.1f} s", flush=True)
    expect(took < STORY_LIMIT, f"that is longer than {STORY_LIMIT} s")
    state = machine.run("systemctl", "is-enabled", "tollkey", quiet=True).strip()
    expect(state == "enabled", f"the service is {state}")
    for path, mode in {
        SETTINGS: "640 root tollkey",
        "/etc/tollkey/jwt-hs256-secret": "400 tollkey tollkey",
        "/var/lib/tollkey": "700 tollkey tollkey",
        "/var/lib/tollkey/tollkey.db": "600 tollkey tollkey",
        "/run/tollkey": "755 tollkey tollkey",
    }.items():
        found = machine.run("stat", "--format", "%a %U %G", path, quiet=True).strip()
        expect(found == mode, f"{path} has {found}, not {mode}")
    secret = machine.run("cat", "/etc/tollkey/jwt-hs256-secret", quiet=True)
    expect(re.fullmatch("[0-9a-f]{64}", secret), "the secret is not 32 random bytes in hexadecimal")
    log = machine.run("journalctl", "--unit", "tollkey", "--no-pager", quiet=True)
    expect("development_mode=false" in log, f"the server runs in development mode:\n{log}")
    expect(secret not in log, "the log has the secret")
    expect(not re.search(r"\b(WARN|ERROR)\b|ignoring", log), f"the log has warnings:\n{log}")


def unit(machine):
    """Checks the unit, and which of its restrictions are in force."""
    print("-- unit", flush=True)
    installed = "/usr/lib/systemd/system/tollkey.service"
    warnings = machine.sh(f"systemd-analyze verify --man=no {installed} 2>&1", quiet=True)
    expect(warnings == "", f"systemd-analyze verify: {warnings}")
    report = machine.run("systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}",
                         installed, quiet=True)
    print(report.strip().splitlines()[-1], flush=True)
    process = machine.run("systemctl", "show", "--property=MainPID", "--value", "tollkey", quiet=True).strip()
    status = machine.run("cat", f"/proc/{process}/status", quiet=True)
    for line in ("NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "Seccomp:\t2"):
        expect(line in status.splitlines(), f"the process has no {line!r}:\n{status}")
    # Even root has these restrictions in the namespaces of the service.
    enter = f"nsenter --target {process} --mount "
    for attempt in ("touch /etc/tollkey/x", "touch /usr/x", "test -e /root/.bashrc", "test -e /dev/console",
                    "cat /proc/sys/kernel/ostype"):
        machine.sh(f"{attempt}; ! {enter}{attempt}", quiet=True)
    machine.sh(f"{enter}touch /var/lib/tollkey/x /run/tollkey/x /tmp/x; [ ! -e /tmp/x ]", quiet=True)
    machine.sh("rm /etc/tollkey/x /usr/x /var/lib/tollkey/x /run/tollkey/x", quiet=True)
    machine.sh(f"echo 'metrics_listen = \"127.0.0.1:9090\"' >>{SETTINGS}; systemctl restart tollkey", quiet=True)
    metrics = machine.sh("curl -fsS http://127.0.0.1:9090/metrics", quiet=True)
    for name in set(re.findall(r"`(process_\w+)`", (ROOT / "docs" / "operating.md").read_text())):
        expect(re.search(rf"(?m)^{name} ", metrics), f"the service has no metric {name}")
    cgroups = machine.run("cat", "/proc/self/mounts", quiet=True)
    if re.search(r"(?m)^cgroup \S+ cgroup ro,\S*devices", cgroups):
        print("not exercised here, because the container cannot change the control groups of devices: DevicePolicy",
              flush=True)


def completions(machine):
    """Completes a command and a setting in bash and fish, and checks the syntax for zsh."""
    print("-- completions", flush=True)
    script = "/usr/share/bash-completion/completions/tollkey"
    for words, expected in (("tok", "token"), ("--data", "--database-url"), ("serv", "service-key")):
        found = machine.sh(
            f'. {script}; COMP_WORDS=(tollkey {words}); COMP_CWORD=1; _tollkey tollkey {words} tollkey; '
            f'echo "${{COMPREPLY[@]}}"', quiet=True,
        )
        expect(expected in found.split(), f"bash completes {words} to {found}")
        found = machine.run("fish", "-c", f"complete --do-complete 'tollkey {words}'", quiet=True)
        expect(expected in [line.split("\t")[0] for line in found.splitlines()], f"fish completes {words} to {found}")
    machine.run("zsh", "-n", "/usr/share/zsh/vendor-completions/_tollkey", quiet=True)
    packaged = machine.run("cat", script, quiet=True)
    expect(machine.run("tollkey", "completions", "bash", quiet=True) == packaged,
           "the package has completions of another version")


def settings(machine):
    """Changes a setting and a secret as documented, and makes a mistake."""
    print("-- settings", flush=True)
    machine.sh(documented("installing.md", "deb-secret"), quiet=True)
    report = machine.sh(documented("installing.md", "deb-settings"), quiet=True)
    expect("/etc/tollkey/sealing-secret" in report, f"the setting is not in effect:\n{report}")
    verify(machine)
    machine.sh(f"cp {SETTINGS} /root/saved; echo 'lisen = \"127.0.0.1:1\"' >>{SETTINGS}", quiet=True)
    machine.sh("! systemctl restart tollkey", quiet=True)
    log = machine.run("journalctl", "--unit", "tollkey", "--lines", "20", "--no-pager", quiet=True)
    expect("listen" in log and SETTINGS in log, f"the log does not say what is wrong:\n{log}")
    # Without a change of the owner, as an editor does it.
    machine.sh(f"cat /root/saved >{SETTINGS}; systemctl restart tollkey", quiet=True)
    verify(machine)
    # Another user gets an error that says what to do.
    said = machine.sh("useradd other; cd /; sudo -u other tollkey config check 2>&1 || true", quiet=True)
    expect("as the user of the server" in said, f"another user sees: {said}")


def unix_socket(machine):
    """Adds the documented socket, which only root and the group of the proxy can open."""
    print("-- Unix socket", flush=True)
    machine.sh(documented("installing.md", "deb-socket"), quiet=True)
    path = "/run/tollkey/tollkey.sock"
    found = machine.run("stat", "--format", "%a %U %G", path, quiet=True).strip()
    expect(found == "660 tollkey www-data", f"the socket has {found}")
    request = f"curl -fsS --unix-socket {path} http://localhost/readyz"
    machine.sh(f"sudo -u www-data {request}; ! sudo -u nobody {request}", quiet=True)
    verify(machine)


def stopping(machine):
    """Stops a server whose drain is longer than the limit of systemd, which the server extends."""
    print("-- stopping", flush=True)
    drop_in = "/etc/systemd/system/tollkey.service.d"
    machine.sh(
        f"mkdir -p {drop_in}; printf '[Service]\\nTimeoutStopSec=2\\nEnvironment=TOLLKEY_DRAIN_SECONDS=5\\n' "
        f">{drop_in}/test.conf; systemctl daemon-reload; systemctl restart tollkey", quiet=True,
    )
    began = time.monotonic()
    machine.sh("systemctl stop tollkey", quiet=True)
    took = time.monotonic() - began
    result = machine.run("systemctl", "show", "--property=Result", "--value", "tollkey", quiet=True).strip()
    print(f"drained and stopped in {took:.1f} s: {result}", flush=True)
    expect(result == "success" and took >= 5, "systemd did not wait for the drain")
    machine.sh(f"rm {drop_in}/test.conf; systemctl daemon-reload; systemctl start tollkey", quiet=True)


def removal(machine, package):
    """Removes the package, installs it again with the same data, and purges it."""
    print("-- removal", flush=True)
    machine.sh(documented("installing.md", "deb-remove"), quiet=True)
    machine.sh("[ ! -e /usr/bin/tollkey ]; [ -e /var/lib/tollkey/tollkey.db ]; ! pgrep tollkey", quiet=True)
    place(machine, package)
    machine.sh(documented("installing.md", "deb-install"), quiet=True)
    verify(machine)
    machine.sh("rm -r /etc/tollkey/sealing-secret /etc/systemd/system/tollkey.service.d", quiet=True)
    machine.sh(documented("installing.md", "deb-purge"), quiet=True)
    machine.sh("[ ! -e /var/lib/tollkey ]; [ ! -e /etc/tollkey ]; [ ! -e /run/tollkey ]; ! pgrep tollkey", quiet=True)
    machine.sh("! systemctl cat tollkey", quiet=True)


def upgrade(machine, old, package):
    """Installs the previous package, creates a key, upgrades, and verifies the key."""
    print(f"-- upgrade from {old.name}", flush=True)
    place(machine, old)
    drop_in = machine.directory / "etc/systemd/system/tollkey.service.d"
    notifies = b"NOTIFY_SOCKET" in contents(old)
    if not notifies:
        # A server from before the package never notifies systemd, so that its start would not end.
        drop_in.mkdir(parents=True)
        (drop_in / "previous.conf").write_text("[Service]\nType=exec\n")
        machine.run("systemctl", "daemon-reload", quiet=True)
    machine.sh(documented("installing.md", "deb-install"), quiet=True)
    machine.sh("until curl -fsS http://127.0.0.1:8080/readyz; do sleep 0.1; done", quiet=True, timeout=60)
    # Commands from before the package do not find its settings by themselves.
    machine.sh("mkdir /srv/work; ln -s /etc/tollkey/tollkey.toml /srv/work", quiet=True)
    story(machine, "" if notifies else "cd /srv/work\n")
    was = machine.run("sha256sum", "/etc/tollkey/jwt-hs256-secret", quiet=True)
    machine.sh(f"echo 'workers = 3' >>{SETTINGS}", quiet=True)
    place(machine, package)
    if not notifies:
        shutil.rmtree(drop_in)
    began = time.monotonic()
    machine.sh(documented("upgrading.md", "deb-upgrade"), quiet=True)
    machine.sh("sudo -u tollkey tollkey healthcheck", quiet=True)
    print(f"upgraded in {time.monotonic() - began:.1f} s", flush=True)
    running = machine.sh("dpkg-query --show --showformat '${Version} ${Status}' tollkey", quiet=True)
    expect(running == f"{package.name.split('_')[1]} install ok installed", f"the package is {running}")
    process = machine.run("systemctl", "show", "--property=MainPID", "--value", "tollkey", quiet=True).strip()
    machine.sh(f"cmp /proc/{process}/exe /usr/bin/tollkey", quiet=True)
    verify(machine)
    expect(machine.run("sha256sum", "/etc/tollkey/jwt-hs256-secret", quiet=True) == was, "the secret was replaced")
    checked = machine.sh("sudo -u tollkey tollkey config check", quiet=True)
    expect(re.search(r"TOLLKEY_WORKERS +3 ", checked), f"the changed setting was lost:\n{checked}")
    story(machine)


def contents(package):
    """Returns the binary of a package."""
    directory = fresh(CACHE / "contents")
    execute("dpkg-deb", "--extract", package, directory, quiet=True)
    return (directory / "usr/bin/tollkey").read_bytes()


def expect(condition, message):
    if not condition:
        raise Failed(message)

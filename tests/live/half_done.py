"""A program in the middle of much at once, until /tmp/go is there; then it ends all of it, and writes down what came of
it (/tmp/said, JSON). For test_disk.py, which knows what has to come.

A commit of git that waits in a hook; pip with half of a package's files written; transactions of SQLite, with a
rollback journal and with a log, that another process waits for; `tail -F` over a rotation; pages that a mapping wrote
and nobody has flushed; a file without a name.
"""

import base64
import csv
import hashlib
import json
import mmap
import os
import sqlite3
import subprocess
import sys
import time
import zipfile

WORK = "/srv/work"
FILES = 200
PATIENCE_S = float(os.environ["PATIENCE_S"])

# pip as it is, which waits in the middle of the files that it writes.
PIP = """
import os, shutil, sys, time
copy = shutil.copyfileobj
def waiting(source, target, *more):
    if str(getattr(target, "name", "")).endswith("module50.py"):
        open("/tmp/in-pip", "w").close()
        while not os.path.exists("/tmp/go"):
            time.sleep(0.02)
    return copy(source, target, *more)
shutil.copyfileobj = waiting
from pip._internal.cli.main import main
sys.exit(main(sys.argv[1:]))
"""

SECOND = """
import sqlite3, sys
bases = {mode: sqlite3.connect(f"/srv/work/{mode}.db", isolation_level=None, timeout=0) for mode in ("delete", "wal")}
seen = [base.execute("select count(*) from t").fetchone()[0] for base in bases.values()]
print(*seen, flush=True)
sys.stdin.readline()
locked = []
for mode, base in bases.items():
    try:
        base.execute("insert into t values ('too early')")
    except sqlite3.OperationalError:
        locked.append(mode)
print(*locked, flush=True)
sys.stdin.readline()
for base in bases.values():
    base.execute("insert into t values ('second')")
print("done", flush=True)
"""


def git(*words):
    return subprocess.Popen(["git", "-c", "user.name=n", "-c", "user.email=e@x", *words], stdout=subprocess.PIPE)


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)


def python(script, *arguments, **more):
    return subprocess.Popen([sys.executable, "-c", script, *arguments], **more)


def digest(data):
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def make_wheel(directory):
    """A package of 100 modules."""
    files = {f"half/module{number}.py": f"NUMBER = {number}\n" * 200 for number in range(100)}
    files["half/__init__.py"] = ""
    files["half-1.0.dist-info/METADATA"] = "Metadata-Version: 2.1\nName: half\nVersion: 1.0\n"
    files["half-1.0.dist-info/WHEEL"] = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{name},{digest(text.encode())},{len(text)}" for name, text in files.items()]
    files["half-1.0.dist-info/RECORD"] = "\n".join([*record, "half-1.0.dist-info/RECORD,,", ""])
    with zipfile.ZipFile(os.path.join(directory, "half-1.0-py3-none-any.whl"), "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


def begin_pip():
    os.makedirs(f"{WORK}/wheels")
    make_wheel(f"{WORK}/wheels")
    options = ["--quiet", "--no-index", "--no-cache-dir", "--disable-pip-version-check", "--no-compile"]
    return python(PIP, "install", *options, "--find-links", f"{WORK}/wheels", "--prefix", f"{WORK}/site", "half")


def flawed():
    """Installed files that are not what the package's own list says."""
    for above, _, names in os.walk(f"{WORK}/site"):
        if "RECORD" in names:
            with open(os.path.join(above, "RECORD"), newline="") as file:
                rows = list(csv.reader(file))
            top = os.path.dirname(above)
            found = [row[0] for row in rows if row[1] and digest(read(os.path.join(top, row[0]))) != row[1]]
            return found if len(rows) > 100 else ["RECORD"]
    return ["there is none"]


def read(path):
    with open(path, "rb") as file:
        return file.read()


def begin_commit():
    os.makedirs(f"{WORK}/repo")
    os.chdir(f"{WORK}/repo")
    git("init", "-q").wait()
    for number in range(FILES):
        with open(f"{number}.txt", "w") as file:
            file.write(str(number) * 100)
    git("add", ".").wait()
    with open(".git/hooks/pre-commit", "w") as hook:
        hook.write("#!/bin/sh\ntouch /tmp/in-hook\nwhile [ ! -e /tmp/go ]; do sleep 0.02; done\n")
    os.chmod(".git/hooks/pre-commit", 0o755)
    return git("commit", "-q", "-m", "half done")


def begin_transactions():
    found = {}
    for mode in ("delete", "wal"):
        found[mode] = base = sqlite3.connect(f"{WORK}/{mode}.db", isolation_level=None)
        base.execute(f"pragma journal_mode={mode}")
        base.execute("create table t (who text)")
        base.execute("begin immediate")
        base.execute("insert into t values ('first')")
    return found


def begin_to_follow():
    with open(f"{WORK}/log", "w") as log:
        log.write("before\n")
    with open(f"{WORK}/followed", "w") as followed:
        line = ["tail", "-n", "+1", "-s", "0.05", "-F", f"{WORK}/log"]
        subprocess.Popen(line, stdout=followed, stderr=subprocess.DEVNULL)
    while os.path.getsize(f"{WORK}/followed") < len("before\n"):
        time.sleep(0.01)


def map_and_dirty():
    with open(f"{WORK}/mapped", "wb") as file:
        file.truncate(1 << 20)
    mapped = mmap.mmap(os.open(f"{WORK}/mapped", os.O_RDWR), 1 << 20)
    for at in range(0, 1 << 20, 8192):
        mapped[at : at + 4] = b"dirt"
    return mapped


def nameless_file():
    file = open(f"{WORK}/nameless", "w+")  # noqa: SIM115
    file.write("only in the descriptor")
    file.flush()
    os.remove(f"{WORK}/nameless")
    return file


def rotate():
    os.rename(f"{WORK}/log", f"{WORK}/log.1")
    with open(f"{WORK}/log", "w") as log:
        log.write("after the rotation\n")
    deadline = time.monotonic() + PATIENCE_S
    while b"after" not in read(f"{WORK}/followed") and time.monotonic() < deadline:
        time.sleep(0.02)


def main():
    pip, commit = begin_pip(), begin_commit()
    bases = begin_transactions()
    second = python(SECOND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert second.stdout.readline().split() == ["0", "0"], "it sees what is committed"
    begin_to_follow()
    mapped, nameless = map_and_dirty(), nameless_file()
    wait_for("/tmp/in-hook")
    wait_for("/tmp/in-pip")
    open("/tmp/ready", "w").close()
    wait_for("/tmp/go")

    said = {}
    second.stdin.write("\n")
    said["locked"] = second.stdout.readline().split()
    for base in bases.values():
        base.execute("commit")
    second.stdin.write("\n")
    second.stdout.readline()
    said["rows"] = {mode: [row[0] for row in base.execute("select who from t")] for mode, base in bases.items()}
    said["whole"] = [base.execute("pragma integrity_check").fetchone()[0] for base in bases.values()]
    said["committed"], said["installed"] = commit.wait(), pip.wait()
    said["flawed"] = flawed()
    said["log"] = git("log", "--format=%s", "--stat").communicate()[0].decode()
    said["status"] = git("status", "--porcelain").communicate()[0].decode()
    said["fsck"] = subprocess.run(["git", "fsck", "--strict"], capture_output=True).returncode
    rotate()
    said["followed"] = read(f"{WORK}/followed").decode()
    mapped[4:8] = b"more"
    said["mapped"], said["more"] = read(f"{WORK}/mapped").count(b"dirt"), read(f"{WORK}/mapped")[:8].decode()
    nameless.seek(0)
    said["nameless"] = nameless.read()
    with open("/tmp/said.new", "w") as file:
        json.dump(said, file)
    os.rename("/tmp/said.new", "/tmp/said")
    time.sleep(600)


main()

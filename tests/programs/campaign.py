"""One program through ijfs, and through CRIU alone: the steps, and what came of each in a word or a sentence.

Every program counts how often its client asked it. So a copy that was saved when it had been asked once answers 2,
however often the original was asked since; and an original that a save has harmed does not answer 2 after it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
from catalog import CHECKOUT, HERE, PORT, VENV, Entry
from waiting import patient

from ijfs.live.criu import command as criu_command
from ijfs.live.criu.log import error_lines
from ijfs.live.process import procfs

IJFS = Path(sys.executable).with_name("ijfs")
READY_S = 120.0
ANSWER_S = 90.0
RIGHT = "✓"

# What plain CRIU is given: what its own manual advises for servers.
CRIU_OPTIONS = ("--tcp-established", "--ext-unix-sk", "--file-locks", "--link-remap", "--ghost-limit=512M")


class Row(msgspec.Struct):
    """What was seen of one program. Each step: RIGHT, or what went wrong; empty where it was not come to."""

    name: str
    what: str
    version: str = ""
    skipped: str = ""
    save: str = ""
    original: str = ""
    restore: str = ""
    fork: str = ""
    in_place: str = ""
    doctor: str = ""
    frozen_s: float = 0.0
    image_bytes: int = 0
    criu: str = ""

    def good(self) -> bool:
        """Everything came back; or the save was refused with a sentence, did no harm, and doctor had said so before."""
        came_back = {self.save, self.original, self.restore, self.fork, self.in_place} == {RIGHT}
        refused = self.save.startswith("refused") and self.original == RIGHT and self.doctor.startswith("refused")
        return came_back or refused


class WrongError(Exception):
    """What went wrong, in a sentence."""


def environment() -> dict[str, str]:
    """Of every process of a program."""
    return {"PORT": str(PORT), "HERE": str(HERE), "PYTHON": str(VENV / "bin/python"), "HOME": "/root"}


def script(entry: Entry, body: str) -> list[str]:
    """A shell script of a program, in its own directory."""
    own = f"/srv/ijfs-programs/{entry.name}"
    exports = " ".join(f"{name}={value}" for name, value in environment().items())
    return ["bash", "-c", f"export {exports}; mkdir -p {own} && cd {own} && {{ {body}; }}"]


class Boxed:
    """A program as an instance of ijfs, by the command line."""

    def __init__(self, repo: Path) -> None:
        self.repo = repo
        self.environment = {**os.environ, "IJFS_REPO": str(repo), "NO_COLOR": "1", "IJFS_SPARE_S": "60"}
        self._ijfs("init")

    def _ijfs(self, *words: str, timeout_s: float = 300.0, quiet: bool = False) -> tuple[int, str]:
        """(exit code, what it said); `quiet`: on standard output alone."""
        try:
            done = subprocess.run(
                [IJFS, *words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=patient(timeout_s),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 124, f"no end after {patient(timeout_s):.0f} s"
        return done.returncode, (done.stdout + ("" if quiet else done.stderr)).strip()

    def take(self, entry: Entry, row: Row) -> None:
        """All steps; what came of them is in the row."""
        try:
            self._steps(entry, row)
        finally:
            self._ijfs("stop", "--all", "--rm", "--timeout", "0")

    def _steps(self, entry: Entry, row: Row) -> None:
        name = entry.name
        code, said = self._ijfs("run", "--name", name, "--", *script(entry, entry.start))
        if code:
            raise WrongError(f"does not start: {said}")
        self._wait_until_ready(entry)
        self._expect(entry, name, 1)
        code, said = self._ijfs("doctor", name)
        row.doctor = f"refused: {sentence(said)}" if code == 12 else RIGHT
        code, said = self._ijfs("--json", "save", name, quiet=True)
        row.save = RIGHT if code == 0 else f"refused: {sentence(said)}" if code == 12 else f"failed: {sentence(said)}"
        row.original = self._said(entry, name, 2)
        if code:
            return
        saved = msgspec.json.decode(said)
        row.frozen_s, row.image_bytes = saved["frozen_s"], saved["image_bytes"]
        row.restore = self._copy(entry, ["restore", saved["snapshot"], "--name", f"{name}-r"], [f"{name}-r"], 2)
        row.fork = self._copy(entry, ["fork", name, "--names", f"{name}-a,{name}-b"], [f"{name}-a", f"{name}-b"], 3)
        code, said = self._ijfs("restore", saved["snapshot"], "--name", name, "--replace")
        row.in_place = self._said(entry, name, 2) if code == 0 else sentence(said)

    def _copy(self, entry: Entry, words: list[str], names: list[str], count: int) -> str:
        """The copies answer `count`, each, and go on."""
        code, said = self._ijfs(*words)
        if code:
            return sentence(said)
        for asked in (count, count + 1):
            for name in names:
                answer = self._said(entry, name, asked)
                if answer != RIGHT:
                    return answer
        self._ijfs("stop", "--rm", "--timeout", "0", *names)
        return RIGHT

    def _wait_until_ready(self, entry: Entry) -> None:
        deadline = time.monotonic() + patient(READY_S)
        while self._ijfs("exec", entry.name, "--", *script(entry, entry.ready), timeout_s=30)[0]:
            if time.monotonic() > deadline:
                raise WrongError(f"never came up: {self._ijfs('logs', entry.name)[1][-300:]}")
            time.sleep(0.2)

    def _expect(self, entry: Entry, name: str, count: int) -> None:
        answer = self._said(entry, name, count)
        if answer != RIGHT:
            raise WrongError(answer)

    def _said(self, entry: Entry, name: str, count: int) -> str:
        code, said = self._ijfs("exec", name, "--", *script(entry, entry.ask), timeout_s=ANSWER_S)
        return RIGHT if said.split()[-1:] == [str(count)] else f"answered {said[-200:]!r} ({code}), not {count}"


class Plain:
    """A program under CRIU alone, as its manual has it: dumped into a directory, restored from it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._before = frozenset(procfs.descendants(os.getpid()))
        self._process: subprocess.Popen[bytes] | None = None

    def take(self, entry: Entry) -> str:
        """RIGHT, or what CRIU says."""
        images = self.directory / "images"
        images.mkdir(parents=True)
        _adopt_orphans(True)
        try:
            return self._steps(entry, images)
        except WrongError as wrong:
            return str(wrong)
        finally:
            self._end()
            if self._process is not None:
                self._process.wait()
            _adopt_orphans(False)
            shutil.rmtree("/srv/ijfs-programs", ignore_errors=True)

    def _steps(self, entry: Entry, images: Path) -> str:
        with (self.directory / "out").open("wb") as out:
            process = self._process = subprocess.Popen(
                script(entry, entry.start),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + patient(READY_S)
        while self._run(script(entry, entry.ready))[0]:
            if time.monotonic() > deadline:
                raise WrongError("never came up")
            time.sleep(0.2)
        self._expect(entry, 1, "before")
        self._criu("dump", images, "-t", str(process.pid))
        process.wait(60)
        self._reap()
        self._criu("restore", images, "-d")
        self._expect(entry, 2, "restored, then")
        return RIGHT

    def _expect(self, entry: Entry, count: int, when: str) -> None:
        code, said = self._run(script(entry, entry.ask))
        if said.split()[-1:] != [str(count)]:
            raise WrongError(f"{when} answered {said[-100:]!r} ({code}), not {count}")

    def _criu(self, verb: str, images: Path, *words: str) -> None:
        log = images / f"{verb}.log"
        code, _ = self._run([str(criu_command.find()), verb, "-D", str(images), "-o", str(log), *words, *CRIU_OPTIONS])
        if code:
            raise WrongError(f"{verb}: {next(iter(error_lines(log)), 'no reason given')}")

    def _run(self, command: list[str]) -> tuple[int, str]:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=patient(ANSWER_S),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 124, f"no end after {patient(ANSWER_S):.0f} s"
        return done.returncode, (done.stdout + done.stderr).strip()

    def _reap(self) -> None:
        """Give the numbers of ended processes back, which a restore needs: this process is everybody's parent."""
        for pid in procfs.descendants(os.getpid()):
            with contextlib.suppress(ChildProcessError):
                if pid not in self._before:
                    os.waitpid(pid, os.WNOHANG)

    def _end(self) -> None:
        """End everything that came of it. Environments do not tell: redis and nginx write over theirs."""
        for _ in range(50):
            left = [pid for pid in procfs.descendants(os.getpid()) if pid not in self._before]
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            if not left:
                return
            time.sleep(0.1)
        raise WrongError(f"processes are left: {left}")


def _adopt_orphans(on: bool) -> None:
    """Whether processes without a parent become this one's children (PR_SET_CHILD_SUBREAPER): so they can be found."""
    ctypes.CDLL(None).prctl(36, int(on))


def sentence(said: str) -> str:
    """The first sentence of an answer of ijfs, without paths of this checkout."""
    with contextlib.suppress(msgspec.DecodeError):
        decoded = msgspec.json.decode(said)
        said = decoded.get("error", {}).get("message", said) if isinstance(decoded, dict) else said
    refused = [line for line in said.splitlines() if "✗" in line or "FAIL" in line]
    text = (refused or said.splitlines() or [""])[0].strip().lstrip("✗ ")
    return re.sub(r"\s+", " ", text.replace(str(CHECKOUT), ""))[:300]


def version_of(entry: Entry) -> str:
    """What it calls itself."""
    done = subprocess.run(script(entry, entry.version), capture_output=True, text=True, check=False, timeout=120)
    found = re.search(r"\d+(\.\d+)+\S*", done.stdout + done.stderr)
    return found[0].rstrip(",)") if found else ""


def run(entry: Entry, directory: Path) -> Row:
    """Both ways of one program."""
    row = Row(entry.name, entry.what, skipped=entry.missing() or "")
    if row.skipped:
        return row
    row.version = version_of(entry)
    try:
        Boxed(directory / "repo").take(entry, row)
    except WrongError as wrong:
        row.save = row.save or str(wrong)
    row.criu = Plain(directory / "plain").take(entry)
    return row

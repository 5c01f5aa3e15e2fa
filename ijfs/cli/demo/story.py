"""The five steps of the demo. Each is a function of the stage: it does the work and claims what it has checked."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ijfs.cli import text
from ijfs.cli.demo import code
from ijfs.cli.demo.stage import Stage, python
from ijfs_engine import is_pages
from ijfs_engine.errors import IjfsError

SIBLINGS = ("left", "right")
ALL = ("lab", *SIBLINGS)


def save_three_times(stage: Stage) -> None:
    """A repository, a kernel in its sandbox, a few hundred megabytes, three snapshots."""
    stage.narrator.chapter(1, "A kernel works, and is saved three times on the way")
    stage.ijfs("init")
    stage.remember(stage.ijfs("kernel", "start", "--name", "lab")["instance"])
    saved = []
    for cell, message in (
        (code.LOAD, "rides loaded"),
        (code.PREPARE, "fares capped, report on port 8000"),
        (code.FIT, "linear model fitted"),
    ):
        stage.cell("lab", cell)
        saved.append(stage.ijfs("save", "lab", "-m", message))
    first, last = saved[0], saved[-1]
    stage.claim(
        "each snapshot holds all of the kernel's memory, and stores what is new",
        0 < last["stored_bytes"] < first["stored_bytes"] and last["image_bytes"] > 150_000_000,
        f"{text.size(last['image_bytes'])} of memory, {text.size(last['stored_bytes'])} stored",
    )
    stage.claim("the kernel runs on", "linear" in stage.cell("lab", code.ASK, show=False))
    stage.claim(
        "files it wrote are its own: this machine has none of them",
        not (stage.desk / "report.txt").exists(),
        minor=True,
    )


def fork_the_second(stage: Stage) -> None:
    """Two live siblings of the second snapshot beside the original; three values, three files, one port."""
    stage.narrator.chapter(2, "Two siblings go on from the second snapshot, beside the original")
    stage.cell("lab", code.GO_ON)
    for instance in stage.ijfs("fork", "lab~1", "--names", ",".join(SIBLINGS))["instances"]:
        stage.remember(instance)
    stage.cell("left", code.FIT_ROOT)
    stage.cell("right", code.FIT_LOG)
    values = {name: stage.cell(name, code.ASK, show=False).strip() for name in ALL}
    for name, value in values.items():
        stage.narrator.say(f"  {name:<6}best = {value!r}")
    stage.claim("one variable has three values in three live kernels", len(set(values.values())) == 3)
    pages = {name: stage.cell(name, code.FETCH, show=False).strip() for name in ALL}
    stage.claim(
        "each has its own files, and its own web server on the same port 8000",
        pages == values,
        "http://127.0.0.1:8000/report.txt asked in each",
    )
    for name in SIBLINGS:
        stage.ijfs("save", name, "-m", f"{name}: another shape")


def kill_and_restore(stage: Stage) -> None:
    """A sibling is killed and comes back lazily: how soon it answers, with how much of its memory."""
    stage.narrator.chapter(3, "One is killed, and comes back before its memory does")
    before = stage.cell("right", code.ASK, show=False)
    _kill(stage, "right")
    began = time.monotonic()
    stage.remember(stage.ijfs("restore", "right")["instance"])
    after = stage.cell("right", code.ASK)
    answered = time.monotonic() - began
    share = _instance(stage, "right")["memory"]
    stage.claim("it answers as it did before it was killed", after == before, f"after {text.seconds(answered)}")
    stage.narrator.say(f"  {share:.0%} of its memory was in by then")
    total = stage.cell("right", code.TOUCH_ALL, show=False)
    stage.claim(
        "all of its memory is what it was",
        total == stage.cell("left", code.TOUCH_ALL, show=False),
        "a sum over the frame, asked in both siblings",
    )


def look_with_ordinary_tools(stage: Stage) -> None:
    """The tree mounted: ls, cat of a file a kernel wrote, cmp of images with what CRIU wrote."""
    stage.narrator.chapter(4, "The snapshots are a filesystem, for any tool")
    with _plain_dump(stage) as dump:
        stage.ijfs("import", str(dump), "-m", "what criu wrote, byte for byte", "--branch", "plain-criu")
        place = stage.directory / "mnt"
        place.mkdir()
        stage.ijfs("mount", str(place))
        stage.mounted = place
        listing = stage.tool("ls", "-l", str(place), str(place / "branches"))
        stage.claim("`ls` shows the branches", all(name in listing.stdout for name in (*ALL, "plain-criu")), minor=True)
        report = place / "branches" / "left" / "files" / str(stage.desk).lstrip("/") / "report.txt"
        shown = stage.tool("cat", str(report))
        stage.claim("`cat` prints a file that only a live kernel has", "square root" in shown.stdout)
        _compare(stage, dump, place / "branches" / "plain-criu" / "images")


def _compare(stage: Stage, dump: Path, images: Path) -> None:
    pages = next(path.name for path in sorted(dump.iterdir()) if is_pages(path.name))
    one = stage.tool("cmp", str(images / pages), str(dump / pages))
    names = sorted(path.name for path in dump.iterdir())
    differing = [
        name
        for name in names
        if subprocess.run(["cmp", "-s", str(images / name), str(dump / name)], check=False).returncode
    ]
    stage.claim(
        "`cmp` finds every image equal to what CRIU wrote",
        one.returncode == 0 and not differing,
        text.count(len(names), "file") if not differing else f"differing: {text.listing(differing)}",
    )


def count_and_free(stage: Stage) -> None:
    """The tree, what it takes, and what comes back when a branch goes."""
    stage.narrator.chapter(5, "What it takes, and what comes back")
    stage.ijfs("tree")
    stage.narrator.say("")
    stage.ijfs("du")
    stage.narrator.say("")
    siblings = stage.quietly("du", *SIBLINGS).data
    alone = {u["id"]: u["unique"] for u in stage.quietly("du").data["snapshots"]}
    gone = alone[stage.quietly("show", "left").data["id"]]
    stage.claim(
        "the siblings share most of their bytes",
        siblings["sharing"] > 0.5,
        f"sharing ratio {siblings['sharing']:.0%} of what they need",
    )
    _unmount(stage)
    stage.ijfs("stop", "--rm", "left")
    stage.ijfs("rm", "left")
    before = stage.bytes_on_disk()
    freed = stage.ijfs("gc")["freed"]
    after = stage.bytes_on_disk()
    stage.claim(
        "the bytes that only this branch had came back",
        freed >= 0.8 * gone and before - after >= 0.8 * gone,
        f"{text.size(gone)} were its own, the disk has {text.size(before - after)} less",
    )
    checked = stage.ijfs("fsck")
    stage.claim("what is left is whole", checked["clean"], minor=True)


STEPS: tuple[Callable[[Stage], None], ...] = (
    save_three_times,
    fork_the_second,
    kill_and_restore,
    look_with_ordinary_tools,
    count_and_free,
)


def clear_away(stage: Stage) -> None:
    """End all that lives, unmount; also after a step failed or the user pressed Ctrl-C."""
    if stage.mounted is not None:
        _unmount(stage)
    if (stage.repository / "live").is_dir():
        stage.quietly("stop", "--all", "--rm")


def prove_tidy(stage: Stage) -> None:
    """Claim that nothing forgot a scratch file; before the directory goes, for then they would all be gone."""
    left = [path.name for path in stage.scratch.iterdir()]
    stage.claim("no temporary file is left", not left, text.listing(left[:5]), minor=True)


def prove_clean(stage: Stage, *, kept: bool) -> None:
    """Claim that nothing is left: no process, mount, namespace or directory of the demo's."""
    watch = stage.watch
    files = [path for path in watch.files() if not (kept and path == str(stage.directory))]
    for what, left in (
        ("process", _settled(watch.processes)),
        ("mount", _settled(watch.mounts)),
        ("namespace", _settled(watch.kept_namespaces)),
        ("directory", files),
    ):
        stage.claim(f"no {what} is left", not left, text.listing(left[:5]), minor=True)


def _settled(look: Callable[[], list[str]], patience_s: float = 5.0) -> list[str]:
    """What is left after a moment: the kernel takes namespaces and mounts down behind the last process."""
    deadline = time.monotonic() + patience_s
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _instance(stage: Stage, name: str) -> dict[str, object]:
    found = stage.quietly("ps").data["instances"]
    return next(instance for instance in found if instance["name"] == name)


def _kill(stage: Stage, name: str) -> None:
    """SIGKILL to the program's first process, as bad luck would have it; returns when it is gone."""
    pid = _instance(stage, name)["pid"]
    assert isinstance(pid, int)
    stage.narrator.command("kill", "-9", str(pid))
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)
    deadline = time.monotonic() + 10
    while _instance(stage, name)["status"] != "exited":
        if time.monotonic() > deadline:
            raise IjfsError(f"'{name}' was killed and is still listed as live")
        time.sleep(0.05)


def _unmount(stage: Stage) -> None:
    place, stage.mounted = stage.mounted, None
    if place is not None:
        stage.ijfs("umount", str(place))
        place.rmdir()


@contextmanager
def _plain_dump(stage: Stage) -> Iterator[Path]:
    """A directory that CRIU itself wrote: `criu dump` of a small program, without ijfs."""
    from ijfs.live.criu.command import find

    images = stage.directory / "criu-dump"
    images.mkdir()
    program = subprocess.Popen(
        [python(), "-c", "import time; data = list(range(10**6)); time.sleep(600)"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    try:
        time.sleep(0.5)
        command = [str(find()), "dump", "-t", str(program.pid), "-D", str(images), "--leave-running", "-o", "/dev/null"]
        stage.narrator.command(*command)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise IjfsError(f"criu dump failed: {done.stderr.strip() or done.returncode}")
        yield images
    finally:
        program.kill()
        program.wait()


def summary(stage: Stage, seconds: float) -> dict[str, object]:
    """The demo's JSON."""
    return {
        "ok": all(claim.held for claim in stage.claims),
        "claims": [{k: v for k, v in vars(claim).items() if k != "minor"} for claim in stage.claims],
        "seconds": round(seconds, 1),
    }

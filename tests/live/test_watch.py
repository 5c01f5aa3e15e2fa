"""What happens in a repository is heard as it happens, whoever does it."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from live_env import LiveEnv
from waiting import eventually, patient

from ijfs.live.client import api as client
from ijfs.live.client.watch import RepositoryEvent, RepositoryWatch
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs_engine import Repository

pytestmark = [pytest.mark.root, pytest.mark.criu]


class Heard:
    """The events of a repository, taken by a thread."""

    def __init__(self, watch: RepositoryWatch) -> None:
        self._events: queue.Queue[RepositoryEvent] = queue.Queue()
        self.thread = threading.Thread(target=self._take, args=[watch])
        self.thread.start()

    def _take(self, watch: RepositoryWatch) -> None:
        with watch:
            for event in watch:
                self._events.put(event)

    def until(self, kind: str) -> RepositoryEvent:
        """The next event of that kind; what comes before it is passed over."""
        while True:
            event = self._events.get(timeout=patient(30))
            if event.kind == kind:
                return event

    def now(self, kind: str) -> bool:
        """Whether an event of that kind has been heard."""
        found = False
        while not self._events.empty():
            found = self._events.get().kind == kind or found
        return found


@contextmanager
def watching(env: LiveEnv, *, documents: bool = False) -> Iterator[Heard]:
    watch = RepositoryWatch(env.repo, documents=documents)
    heard = Heard(watch)
    try:
        yield heard
    finally:
        watch.stop()
        heard.thread.join(patient(10))
        assert not heard.thread.is_alive()


def test_a_program_is_heard_from_its_start_to_its_end(live_env: LiveEnv) -> None:
    with watching(live_env) as heard:
        live_env.command("one", "sleep 600")
        assert heard.until("started").instance == "one"
        saved = live_env.save("one", "as it began")
        event = heard.until("saved")
        assert (event.instance, event.snapshot, event.text) == ("one", saved.snapshot, "as it began")
        assert "branch one" in heard.until("refs").text
        live_env.restore(saved.snapshot, "one", replace=True)
        assert heard.until("restored").snapshot == saved.snapshot
        live_env.stop("one")
        event = heard.until("exited")
        assert (event.instance, event.text) == ("one", "stopped")


def test_what_ran_before_is_heard_without_being_said_to_start_and_names_that_move_too(live_env: LiveEnv) -> None:
    live_env.command("early", "sleep 600")
    with watching(live_env) as heard:
        saved = live_env.save("early")
        assert heard.until("saving").instance == "early"
        assert heard.until("saved").snapshot == saved.snapshot
        heard.until("refs")
        with Repository.open(live_env.repo) as repository:
            repository.refs.set_tag("kept", bytes.fromhex(saved.snapshot))
        assert heard.until("refs").text == "tag kept"


def test_a_program_is_heard_again_when_another_keeper_has_taken_it_over(live_env: LiveEnv) -> None:
    live_env.command("one", "sleep 600")
    with watching(live_env) as heard:
        keeper = read_record(InstancePaths.of(live_env.repo, "one")).keeper
        assert keeper is not None
        os.kill(keeper.pid, signal.SIGKILL)
        assert eventually(lambda: live_env.save("one").snapshot and heard.now("saved"), 30)
        live_env.stop("one")
        assert heard.until("exited").instance == "one"
        assert not heard.now("started")


def test_a_save_from_elsewhere_has_the_notebook_as_its_editor_has_it(live_env: LiveEnv, tmp_path: Path) -> None:
    (tmp_path / "n.ipynb").write_text("on disk")
    live_env.command("one", "sleep 600", notebook=str(tmp_path / "n.ipynb"))

    def document(snapshot: str) -> bytes:
        with Repository.open(live_env.repo) as repository:
            reader = repository.reader()
            root = repository.snapshot(bytes.fromhex(snapshot)).root
            return reader.open(reader.lookup(root, "notebook.ipynb")).read(0, 100)

    assert document(live_env.save("one").snapshot) == b"on disk"
    with watching(live_env, documents=True) as heard:
        saved = SavedMeanwhile(live_env, "one")
        with client.connect(live_env.repo, "one") as keeper:
            keeper.give(heard.until("document").text, b"as typed")
        assert document(saved.result()) == b"as typed"
        # An editor that says nothing is waited for once, and then not again.
        assert document(live_env.save("one").snapshot) == b"on disk"
        assert document(live_env.save("one").snapshot) == b"on disk"


class SavedMeanwhile:
    """A save in a thread; its snapshot."""

    def __init__(self, env: LiveEnv, name: str) -> None:
        self._found = ""
        self._thread = threading.Thread(target=lambda: setattr(self, "_found", env.save(name).snapshot))
        self._thread.start()

    def result(self) -> str:
        self._thread.join(patient(30))
        return self._found

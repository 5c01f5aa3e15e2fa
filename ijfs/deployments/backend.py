"""One instance of a deployment: what blocks, by the client's verbs. deployment.py calls it in threads."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import msgspec

from ijfs.deployments.records import Stage
from ijfs.live.client import api as client
from ijfs.live.errors import InstanceExistsError, NoInstanceError
from ijfs.live.model.protocol import SaveArguments
from ijfs.live.model.records import InstanceInfo, InstanceSpec, Process, SaveResult
from ijfs.live.process import procfs
from ijfs_engine import Repository
from ijfs_engine.errors import IjfsError, TargetDiedError

END_S = 10.0
"""How long a server gets for its end after SIGTERM."""


STORING_S = 0.05
"""Between two looks at a save that is being stored."""


class Backend:
    """An instance by its name; `requests` are those under way in it."""

    def __init__(self, repo: Path, name: str, program: InstanceSpec, inside: int) -> None:
        self.name = name
        self.requests = 0
        self.port = 0
        """Where it is reached on this machine; 0 while it does not run."""
        self.phases: dict[str, float] = {}
        """Seconds of each step of its last start, restore or wake."""
        self._repo = repo
        self._program = msgspec.structs.replace(program, name=name)
        self._inside = inside
        self._process: Process | None = None

    @property
    def is_alive(self) -> bool:
        """Whether its program is there, as far as one look at /proc says."""
        return procfs.is_alive(self._process)

    def depth(self) -> Stage:
        """Where it is: `running`, in `memory`, or `gone` (perhaps with a snapshot, of which this knows nothing)."""
        info = self._settled()
        if info is None or info.status != "running":
            return "gone"
        self._found(info)
        return "memory" if info.parked else "running"

    def saved_at_its_end(self) -> str | None:
        """The snapshot (hex) that it was saved as when it ended, where it was: perhaps for a supervisor that was killed
        meanwhile."""
        info = self._settled()
        return info.snapshot if info is not None and info.status == "exited" and _was_saved(info) else None

    def _settled(self) -> InstanceInfo | None:
        """How it stands, once a save that ended it is stored; None where there is none."""
        with contextlib.suppress(NoInstanceError):
            while (info := client.describe(self._repo, self.name)).status == "exited" and info.saving:
                time.sleep(STORING_S)
            return info
        return None

    def start(self, *, keep_files: bool) -> None:
        """Begin its command; returns when it is ready. `keep_files`: what an ended one wrote is there again."""
        self._found(client.start(self._repo, self._program, again=keep_files, forget=not keep_files))

    def begin(self) -> None:
        """Begin its command under a name that nobody has. InstanceExistsError."""
        self._found(client.start(self._repo, self._program))

    def restore(self, snapshot: str) -> None:
        """Bring a snapshot back; returns when it is ready."""
        self._found(client.restore(self._repo, snapshot, self.name, replace=True))

    def ended_with_files(self) -> bool:
        """Whether it ended by itself: what it wrote since it was last saved is only in its directory."""
        info = self._settled()
        return info is not None and info.status == "exited" and not _was_saved(info)

    def park(self) -> None:
        """Stand still in host memory."""
        with client.connect(self._repo, self.name) as keeper:
            keeper.park()

    def wake(self) -> None:
        """Go on from there."""
        with client.connect(self._repo, self.name) as keeper:
            self._found(keeper.wake())

    def save(self, message: str, *, stop: bool = False, thinned: bool = False) -> SaveResult:
        """Save it; with `stop` it ends there. `thinned`: older ones of this kind are removed by and by."""
        with client.connect(self._repo, self.name) as keeper:
            result = keeper.request(SaveArguments(message=message, stop=stop, auto=thinned))
        if result.stopped:
            self._lost()
        return result

    def stop(self) -> None:
        """End it; nothing where it has ended."""
        self._lost()
        with contextlib.suppress(NoInstanceError, TargetDiedError):
            if client.is_running(self._repo, self.name):
                with client.connect(self._repo, self.name) as keeper:
                    keeper.stop(timeout_s=END_S)

    def forget(self) -> None:
        """Remove what is left of it, its files too."""
        self.stop()
        with contextlib.suppress(NoInstanceError):
            client.remove(self._repo, self.name)

    def last_words(self) -> str:
        """The end of what it wrote, for an error."""
        with contextlib.suppress(IjfsError, OSError):
            lines = Path(client.describe(self._repo, self.name).log).read_text(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""

    def _lost(self) -> None:
        self.port, self._process = 0, None

    def _found(self, info: InstanceInfo) -> None:
        self.phases = info.phases
        self._process = procfs.identify(info.pid) if info.pid is not None else None
        self.port = next((port.host for port in info.relay if port.inside == self._inside), 0)


def _was_saved(info: InstanceInfo) -> bool:
    return info.note.startswith("saved as ")


def require_free(repo: Path, instance: str, *, branch_too: bool = True) -> None:
    """InstanceExistsError where the name is somebody's already: a program's, with files that would go, or
    (`branch_too`) a branch's, which ends with the deployment."""
    with contextlib.suppress(NoInstanceError):
        client.describe(repo, instance)
        raise InstanceExistsError(
            f"there is a program `{instance}`, and a deployment's is called so",
            hint=f"choose another name, or let that one go: `ijfs stop --rm {instance}`",
        )
    if not branch_too:
        return
    with Repository.open(repo) as repository:
        if instance in repository.refs.branches():
            raise InstanceExistsError(
                f"there is a branch `{instance}`, and a deployment's is called so: it would go with it",
                hint="choose another name, or rename the branch",
            )


def tag_of(instance: str) -> str:
    """The tag that keeps a deployment's snapshot."""
    return f"deployed-{instance}"


def keep(repo: Path, instance: str, snapshot: str) -> None:
    """Tag a deployment's snapshot, so that nothing removes it."""
    with Repository.open(repo) as repository:
        tags = repository.refs.tags()
        name = tag_of(instance)
        ident = repository.resolve(snapshot)
        if tags.get(name) != ident:
            repository.refs.set_tag(name, ident, expect=tags.get(name), why=f"the deployment's moment, {time.ctime()}")


def let_go(repo: Path, instance: str) -> None:
    """Remove a deployment's snapshots: its tag and branch; what nothing else holds is freed by the next gc."""
    untag(repo, instance)
    with Repository.open(repo) as repository:
        if instance in repository.refs.branches():
            repository.refs.delete_branch(instance)


def untag(repo: Path, instance: str) -> None:
    """Remove the tag that `keep` made, where there is one."""
    with Repository.open(repo) as repository:
        if tag_of(instance) in repository.refs.tags():
            repository.refs.delete_tag(tag_of(instance))

"""A live program in its sandbox, as a Python object: run cells and commands in it, save, fork, go back, stop.

Made by `Repository.start`, `kernel`, `restore`, `fork` and `box`. It holds no connection and no lock: any number of
objects, in any number of processes, may stand for one instance, and dropping one ends nothing.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ijfs.live.client import api as client
from ijfs.live.client.api import NO_SECRETS
from ijfs.live.client.instances import not_running
from ijfs.live.errors import InstanceExitedError, NoInstanceError
from ijfs.live.model.records import NO_LIMITS, Idle, InstanceInfo, Limits, SaveResult
from ijfs.sdk import calls
from ijfs.sdk.calls import CallTimeoutError
from ijfs_engine.errors import IjfsError, NoRepositoryError, TargetDiedError

if TYPE_CHECKING:
    from ijfs.jupyter.outputs import CellResult, OnOutput, OnStream
    from ijfs.live.client.api import FilesChoice, OnEvent
    from ijfs.sdk.commands import Command, Completed, OnBytes
    from ijfs.sdk.files import Files
    from ijfs.sdk.snapshots import Snapshot

Env = Mapping[str, str]
LOOK_S = 0.05
"""Between two looks at whether a program has ended, where it is waited for."""
WRITTEN_S = 10.0
"""How long its keeper may take to write down how a program ended."""


class NotAKernelError(IjfsError):
    """A cell was to be run in a program that is no kernel."""


class Box:
    """One live program. `name` is its instance's; `repo` the directory of its repository.

    As a context manager it stops and forgets the program at the end; its snapshots stay.
    """

    def __init__(self, repo: Path, name: str) -> None:
        self.repo, self.name = repo, name
        self.kept = False

    def __repr__(self) -> str:
        return f"Box({self.name!r})"

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    # -- what it is -----------------------------------------------------------------------------------------------

    @property
    def info(self) -> InstanceInfo:
        """The instance as `ijfs ps --json` has it; NoInstanceError."""
        return client.describe(self.repo, self.name)

    @property
    def running(self) -> bool:
        """Whether its program runs."""
        return client.is_running(self.repo, self.name)

    @property
    def snapshot(self) -> Snapshot | None:
        """The snapshot it last saved or came from; None before the first."""
        from ijfs.sdk.snapshots import Snapshot

        found = self.info.snapshot
        return Snapshot(self.repo, found) if found is not None else None

    @property
    def files(self) -> Files:
        """Its files."""
        from ijfs.sdk.files import Files

        return Files(self.repo, self.name)

    def port(self, inside: int) -> int:
        """The port of 127.0.0.1 on this machine that leads to one inside; it was asked for when the program began."""
        for port in self.info.relay:
            if port.inside == inside:
                return port.host
        raise IjfsError(f"port {inside} of `{self.name}` is not relayed", hint=f"start it with ports=[{inside}]")

    def logs(self) -> str:
        """What the program wrote to its standard output and error so far."""
        return Path(self.info.log).read_text(errors="replace")

    def connection_file(self) -> str:
        """The Jupyter connection file of a kernel. NotAKernelError, InstanceExitedError."""
        info = self.info
        if info.status != "running":
            raise not_running(self.name, parked=info.parked_on_disk)
        if info.connection_file is None:
            raise NotAKernelError(
                f"'{self.name}' is not a kernel", hint=f"`ijfs exec {self.name} -- CMD` runs a command in it"
            )
        return info.connection_file

    # -- work in it -----------------------------------------------------------------------------------------------

    def run(
        self,
        code: str,
        *,
        timeout: float | None = None,
        interrupt: bool = True,
        on_output: OnOutput | None = None,
        on_stream: OnStream = lambda name, text: None,
        store_history: bool = False,
    ) -> CellResult:
        """Run a cell in a kernel. An exception of the cell's is in the result, not raised.

        `timeout` seconds later it is interrupted, as by Ctrl-C, and CellTimeoutError raised (its `result` has what was
        printed); the kernel keeps its state. With `interrupt=False` it runs on. `on_output` gets each output as it
        comes, as nbformat has it. `store_history`: it gets a number, and is in the kernel's `In` and `Out`.
        """
        from ijfs.jupyter.cells import run_cell

        cancellation = calls.current()
        try:
            return run_cell(
                self.connection_file(),
                code,
                timeout,
                alive=partial(client.is_running, self.repo, self.name),
                on_stream=on_stream,
                on_output=on_output,
                interrupt=self.interrupt if interrupt else None,
                cancelled=lambda: cancellation.cancelled,
                store_history=store_history,
            )
        except TargetDiedError as error:
            raise self._died(error) from None

    def _died(self, error: TargetDiedError) -> TargetDiedError:
        """The error, with what is known of why."""
        with contextlib.suppress(IjfsError):
            self._written_end()
            if self.info.oom_kills and (note := self.info.note):
                return TargetDiedError(f"{error}: it {note}", hint=error.hint)
        return error

    def exec(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Env | None = None,
        input: bytes | str | None = None,
        timeout: float | None = None,
        check: bool = False,
        on_output: OnBytes | None = None,
    ) -> Completed:
        """Run a command among the program's processes, files and ports, and wait for it.

        `timeout` seconds later it is killed, and CommandTimeoutError raised (its `completed` has what was written).
        `check`: CommandFailedError unless it ends with 0. `on_output` gets each piece as it comes.
        """
        from ijfs.sdk.commands import feed

        with self.popen(argv, cwd=cwd, env=env, has_input=input is not None) as command:
            if input is not None:
                feed(command, input.encode() if isinstance(input, str) else input)
            completed = command.wait(timeout, on_output=on_output)
        return completed.check() if check else completed

    def popen(
        self, argv: Sequence[str], *, cwd: str | None = None, env: Env | None = None, has_input: bool = True
    ) -> Command:
        """Start a command among the program's processes, files and ports; its input and output are the caller's."""
        from ijfs.sdk.commands import Command

        line = client.exec_line(self.repo, self.name, argv, cwd=cwd, env=env, session=True)
        return Command(line, has_input=has_input)

    def signal(self, number: int) -> None:
        """Send a signal to the program's process group."""
        with client.connect(self.repo, self.name) as keeper:
            keeper.signal(number)

    def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT, which ends a kernel's cell and not the kernel."""
        self.signal(signal.SIGINT)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the program ends; its exit status as a shell has it, None where nobody saw it."""
        deadline = None if timeout is None else time.monotonic() + timeout
        cancellation = calls.current()
        while self.running and not cancellation.cancelled:
            if deadline is not None and time.monotonic() > deadline:
                raise CallTimeoutError(f"`{self.name}` has not ended after {timeout:g} s")
            time.sleep(LOOK_S)
        return self._written_end()

    def _written_end(self) -> int | None:
        """How it ended: its keeper writes that down a moment later, and ends then."""
        until = time.monotonic() + WRITTEN_S
        with contextlib.suppress(NoInstanceError):  # an ephemeral one
            while (info := self.info).exit_status is None and info.keeper_running and time.monotonic() < until:
                time.sleep(LOOK_S / 5)
            return info.exit_status
        return None

    # -- moments of it --------------------------------------------------------------------------------------------

    def save(
        self,
        message: str = "",
        *,
        branch: str | None = None,
        stop: bool = False,
        verify: bool = False,
        push: bool = False,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Snapshot:
        """Keep this moment: memory, GPU memory and files. Returns when it is safe on disk; with `push`, when it is at
        its remote, too (RemoteError: it is safe here).

        `stop`: the program ends in the saved state. `verify`: try whether it can be restored (`Snapshot.saved` says).
        After `timeout` seconds CallTimeoutError is raised; the save goes on.
        """
        from ijfs.live.uploads.reach import send_now
        from ijfs.sdk.snapshots import Snapshot

        def save() -> SaveResult:
            with client.connect(self.repo, self.name, on_event=on_event) as keeper:
                saved = keeper.save(message, branch=branch, stop=stop, verify=verify)
            if push:
                send_now(self.repo, saved.branch, client.describe(self.repo, self.name).storage)
            return saved

        result = calls.within(timeout, "the save", save)
        return Snapshot(self.repo, result.snapshot, saved=result)

    def restore(
        self,
        snapshot: Snapshot | str,
        *,
        save_first: bool = False,
        files: FilesChoice | Literal[""] = "",
        idle: Idle | None = None,
        secrets: Env = NO_SECRETS,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
    ) -> str | None:
        """Go back (or over) to a snapshot in place: name, ports and clients stay. An ended program comes back. What it
        was since its last save is lost, unless `save_first` saves that: its snapshot's id is returned then. `files`:
        folders that it shares stay as they are ("keep", the default), are put back as they were ("restore"), or it gets
        a copy as they were ("private"). `idle`: what becomes of it where nobody uses it, instead of what did.
        `secrets`: over those that it has; one that has ended has none."""
        call = partial(
            client.restore,
            self.repo,
            str(snapshot),
            self.name,
            replace=True,
            save_first=save_first,
            files=files,
            idle=idle,
            secrets=secrets,
            on_event=on_event,
        )
        return calls.within(timeout, "the restore", call).left

    def fork(
        self,
        count: int = 1,
        *,
        names: Sequence[str] = (),
        env: Sequence[Env] = (),
        message: str = "",
        on_demand: bool = False,
        same_random: bool = False,
        limits: Limits = NO_LIMITS,
        idle: Idle | None = None,
        secrets: Env = NO_SECRETS,
        ephemeral: bool = False,
        seed: int | None = None,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
    ) -> list[Box]:
        """Live copies of this moment, which is saved first; it runs on. `Snapshot.fork` has the arguments."""
        from ijfs.sdk.forks import fork

        return fork(
            self.repo,
            self.name,
            count,
            names=names,
            env=env,
            message=message,
            on_demand=on_demand,
            same_random=same_random,
            limits=limits,
            idle=idle,
            secrets=secrets,
            ephemeral=ephemeral,
            seed=seed,
            timeout=timeout,
            on_event=on_event,
        )

    def park(self, *, disk: bool = False, timeout: float | None = None, on_event: OnEvent | None = None) -> None:
        """Let it stand still in host memory, where it takes no processor and no GPU; or, with `disk`, save it and end
        it. `wake` undoes both."""

        def park() -> None:
            with client.connect(self.repo, self.name, on_event=on_event) as keeper:
                keeper.park(disk=disk)

        calls.within(timeout, "the parking", park)

    def wake(self, *, secrets: Env = NO_SECRETS, timeout: float | None = None, on_event: OnEvent | None = None) -> None:
        """Let it go on after `park`, or after an idle time that parked it; `secrets` of one that was ended for that are
        given again. InstanceExitedError where it ended otherwise."""
        call = partial(client.wake, self.repo, self.name, secrets=secrets, on_event=on_event)
        calls.within(timeout, "the waking", call)

    def adopt(
        self, paths: Sequence[str] = (), *, keep: Literal["ours", "theirs"] | None = None, winner: bool = False
    ) -> list[str]:
        """Take home what it wrote, onto this machine: what lies in its working directory, or at these paths; which were
        put there. ConflictError where the machine has changed one meanwhile, unless `keep` says whose to keep; nothing
        is done then. `winner`: the branch of the program that it is a fork of goes on from it, and that program and its
        other forks are saved and ended."""
        from ijfs.sdk.adoption import adopt

        return adopt(self.repo, self.name, paths, keep=keep, winner=winner)

    # -- its end --------------------------------------------------------------------------------------------------

    def keep(self) -> Box:
        """Let it live on after the `branches` block that made it."""
        self.kept = True
        return self

    def stop(self, *, grace_s: float = 5.0, force: bool = False, timeout: float | None = None) -> None:
        """End the program: SIGTERM, after `grace_s` seconds SIGKILL. What was saved stays, and so do its files until
        `remove`. Nothing to do where it has ended. `force`: also when a save that nobody waited for has failed."""

        def stop() -> None:
            try:
                with client.connect(self.repo, self.name) as keeper:
                    keeper.stop(timeout_s=grace_s, force=force)
            except InstanceExitedError:
                pass

        calls.within(timeout, "the stop", stop)

    def remove(self) -> None:
        """Forget an ended program: its log and unsaved files go, its snapshots stay. LockedError while it runs."""
        client.remove(self.repo, self.name)

    def discard(self) -> None:
        """End the program at once and forget it; nothing to do where there is none."""
        try:
            self.stop(grace_s=0, force=True)
            self.remove()
        except (NoInstanceError, NoRepositoryError):
            pass

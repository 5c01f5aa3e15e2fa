"""The kernel provisioner: Jupyter's KernelManager starts, watches and ends kernels in ijfs sandboxes through it.

Loaded by jupyter_client through the entry point `ijfs-provisioner` when a kernel spec names it (kernelspec.py writes
such specs). All it does is translate: the kernel's life is its keeper's, which outlives the Jupyter server. What a
client connects to are the relay's ports on the host, which stay the same through saves and restores in place.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Bool, Enum, Int, List, Unicode, default

from ijfs import settings
from ijfs.guest.magics import AUTO_VARIABLE
from ijfs.jupyter.kernelspec import KernelSpecError, check_auto
from ijfs.jupyter.naming import instance_name, notebook_of_command
from ijfs.jupyter.repository import choose_repository, ensure_repository
from ijfs.jupyter.unsaved_work import written_work, wrote_elsewhere
from ijfs.live.client import api as client
from ijfs.live.client.api import InstanceInfo, InstanceSpec
from ijfs.live.client.forgetting import forget_notebooks
from ijfs.live.errors import InstanceExitedError, KeeperError, NoInstanceError
from ijfs.live.model.environment import is_text
from ijfs.live.model.records import Limits, Network
from ijfs.live.model.sizes import parse_limits
from ijfs.live.sandbox import host_folders
from ijfs.live.sandbox.sandbox import EXTENSIONS
from ijfs_engine.errors import IjfsError

BEGINS_AS, JOINS = "ijfs_snapshot", "ijfs_attach"
"""What `start_kernel` may be told of one launch: a snapshot that the kernel begins as a copy of; the live instance that
it is."""

POLL_S = 0.1
"""How often `wait` looks; what jupyter_client's own provisioner takes."""

UNKNOWN_EXIT_STATUS = 1
"""Reported for a kernel whose end nobody saw (its keeper was killed too): not 0, for it did not end as asked."""


class IjfsProvisioner(KernelProvisionerBase):
    """One kernel in a sandbox. The traits are the kernel spec's `metadata.kernel_provisioner.config`."""

    repo = Unicode("", config=True, help="Repository; empty: $IJFS_REPO, else the user's data directory.")
    network = Enum(["none", "slirp4netns"], "none", config=True, help="The sandbox's way out.")
    base = Unicode("", config=True, help="The base its files come from; empty: the default of the place.")
    snapshot = Unicode("", config=True, help="Begin as a restored copy of this snapshot instead of from scratch.")
    attach = Unicode("", config=True, help="Be this live kernel instead of starting one.")
    gpu = Bool(False, config=True, help="Give the sandbox the machine's GPUs.")
    disk = Int(0, config=True, help="Bytes of a disk of its own for what it writes; 0: none.")
    share = List(Unicode(), config=True, help="Folders that it shares with the machine, from its working directory.")
    bind = List(Unicode(), config=True, help="Folders of the machine's that no save keeps; DIR:ro not to write to.")
    auto = Unicode("", config=True, help="Save after cells: `on`, or what `%ijfs auto` takes, `on --every 60`.")

    @default("network")
    def _network_of_the_user(self) -> str:
        return settings.value("network")

    @default("base")
    def _base_of_the_user(self) -> str:
        return settings.value("base")

    @default("gpu")
    def _gpu_of_the_user(self) -> bool:
        return settings.is_true("gpu")

    @default("auto")
    def _auto_of_the_user(self) -> str:
        """`auto` is for IPython kernels; others are started without."""
        ipython = self.kernel_spec is not None and any("ipykernel" in word for word in self.kernel_spec.argv)
        return settings.value("auto") if ipython else ""

    _repository = Path()
    _instance = ""
    _managing = False
    _launched = False
    _begins_as = ""
    _notebook = ""
    _joined = False
    _said = ""

    @property
    def attached(self) -> bool:
        """Whether the kernel is an instance that was there before: it is left, not ended, when nobody wants it here."""
        return bool(self.attach) or self._joined

    @property
    def repository(self) -> Path:
        """Where the kernel's snapshots go."""
        return self._repository

    @property
    def instance(self) -> str:
        """The instance that the kernel is; "" before it was launched."""
        return self._instance

    @property
    def has_process(self) -> bool:
        """Whether a kernel was launched and its end not yet waited for."""
        return self._managing

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Choose repository and instance name; complete the command, but for `{connection_file}`, and environment.

        Of this launch alone, not of a restart: `ijfs_snapshot`, the kernel begins as a copy of it; `ijfs_attach`, it is
        that live instance.
        """
        begins_as, joins = kwargs.pop(BEGINS_AS, ""), kwargs.pop(JOINS, "")
        if not self._launched:
            self._begins_as, self._joined = begins_as, bool(joins)
        kwargs["cmd"] = self._command(kwargs.pop("extra_arguments", []))
        kwargs = await super().pre_launch(**kwargs)
        if self.auto:
            kwargs["env"] = {**kwargs["env"], AUTO_VARIABLE: self.auto.removeprefix("on")}
        self._repository = choose_repository(self.repo, kwargs["env"])
        self._instance = self._instance or joins or self.attach or self._new_name(kwargs["env"])
        self._notebook = _notebook(kwargs["env"])
        await asyncio.to_thread(ensure_repository, self._repository)
        await asyncio.to_thread(forget_notebooks, self._repository)
        return kwargs

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start, restore or attach; returns the relay's ports with the key the kernel signs its messages with."""
        cwd = os.path.abspath(os.path.expanduser(kwargs.get("cwd") or os.getcwd()))
        info = await asyncio.to_thread(self._launch, cmd, kwargs["env"], cwd)
        if info.connection is None:
            raise KeeperError(f"`{info.name}` is not a kernel", hint="attach to a program that `ijfs ps` shows as one")
        self._cwd = info.cwd
        self.connection_info = _as_jupyter_has_it(info.connection)
        self._managing = self._launched = True
        self.log.info("kernel %s runs as the program %s of %s", self.kernel_id, self._instance, self._repository)
        return self.connection_info

    async def poll(self) -> int | None:
        """None while the kernel runs, else its exit status as a shell has it. A kernel that is being replaced runs."""
        if not self._managing:
            return 0
        if client.is_running(self._repository, self._instance):
            return None
        return await asyncio.to_thread(self._exit_status)

    async def wait(self) -> int | None:
        """Return the exit status once the kernel has ended."""
        while (status := await self.poll()) is None:
            await asyncio.sleep(POLL_S)
        self._managing = False
        return status

    async def send_signal(self, signum: int) -> None:
        """Deliver a signal inside the kernel's pid namespace, to the kernel itself; an ended kernel takes none. A
        manager that shuts down interrupts first: one that leaves a kernel only does not."""
        if signum and self._managing and not (self.attached and self._is_shutting_down()):
            await asyncio.to_thread(self._signal, signum)

    def _is_shutting_down(self) -> bool:
        return bool(getattr(self.parent, "shutting_down", False))

    async def shutdown_requested(self, restart: bool = False) -> None:
        """The manager has asked the kernel to end. An attached one did not hear it, and is not waited for: at a restart
        it goes back when it is launched again, and is saved before."""
        if self.attached:
            self.let_go()

    def let_go(self) -> None:
        """Leave the kernel as it is: this manager is done with it."""
        self._managing = False

    async def save_before_end(self, why: str) -> None:
        """Save what the kernel did since its last save, where it did anything and is this manager's to end."""
        if self._managing and not self.attached:
            await asyncio.to_thread(self._save_unsaved, why)

    async def terminate(self, restart: bool = False) -> None:
        """Ask the kernel to end (SIGTERM); one that is attached is left."""
        if self.attached:
            self.let_go()
        else:
            await self.send_signal(signal.SIGTERM)

    async def kill(self, restart: bool = False) -> None:
        """End the sandbox and all that runs in it, now; one that is attached is left (a manager does not say here
        whether it will begin again: then it goes back)."""
        if self.attached:
            self.let_go()
        elif self._managing:
            await asyncio.to_thread(self._stop)

    async def cleanup(self, restart: bool = False) -> None:
        """Forget the ended instance unless the kernel wrote in its working directory; keep it for a restart. What it
        wrote elsewhere is kept in a snapshot."""
        if not restart and self._instance and not self.attached:
            await asyncio.to_thread(self._remove)

    async def get_provisioner_info(self) -> dict[str, Any]:
        """What another process needs to manage this kernel."""
        info: dict[str, Any] = await super().get_provisioner_info()
        return {**info, "repository": str(self._repository), "instance": self._instance}

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Manage a kernel that another process launched; the keeper that owns it knows no difference."""
        await super().load_provisioner_info(provisioner_info)
        self._repository = Path(provisioner_info["repository"])
        self._instance = provisioner_info["instance"]
        self._managing = self._launched = bool(self._instance)

    def resolve_path(self, path: str) -> str | None:
        """The path as the kernel means it, where the host has such a file (the sandbox sees the host's files)."""
        resolved = Path(self._cwd, os.path.expanduser(path)).resolve()
        return str(resolved) if resolved.exists() else None

    _cwd = "/"

    def _command(self, extra_arguments: list[str]) -> list[str]:
        """The kernel spec's command with everything filled in but `{connection_file}`, which the sandbox chooses."""
        assert self.kernel_spec is not None
        known = {"resource_dir": self.kernel_spec.resource_dir, "prefix": sys.prefix}

        def fill(match: re.Match[str]) -> str:
            return str(known.get(match.group(1), match.group()))

        command = [*self.kernel_spec.argv, *extra_arguments]
        if self.auto:
            command.append(self._extension())
        return [re.sub(r"\{([A-Za-z0-9_]+)\}", fill, word) for word in command]

    def _extension(self) -> str:
        """What makes an IPython kernel load the magics by itself. KernelSpecError for other kernels and bad options."""
        assert self.kernel_spec is not None
        if not any("ipykernel" in word for word in self.kernel_spec.argv):
            raise KernelSpecError("`auto` works in IPython kernels only", hint="`ijfs save` saves any kernel")
        check_auto(self.auto)
        return f"--{EXTENSIONS}=ijfs"

    def _new_name(self, env: Mapping[str, str]) -> str:
        kernel_name = getattr(self.parent, "kernel_name", "")
        session = env.get("JPY_SESSION_NAME", "") or notebook_of_command(sys.argv)
        return instance_name(session, kernel_name, self.kernel_id)

    def _launch(self, cmd: list[str], env: dict[str, str], cwd: str) -> InstanceInfo:
        if self.attached:
            return self._attach()
        # After the first launch this is a restart: the kernel's clients find it at the same ports.
        snapshot = self.snapshot if self._launched else self._begins_as or self.snapshot
        if snapshot:
            return client.restore(
                self._repository,
                snapshot,
                self._instance,
                replace=self._launched,
                of_notebook=self._notebook,
                front_end=self._session(),
            )
        return client.start(self._repository, self._spec(cmd, env, cwd), again=self._launched)

    def _spec(self, cmd: list[str], env: dict[str, str], cwd: str) -> InstanceSpec:
        folders = host_folders.bearable([os.path.join(cwd, path) for path in self.share], self._repository)
        for note in folders.notes:
            self.log.warning(note)
        return InstanceSpec(
            name=self._instance,
            kind="kernel",
            argv=tuple(cmd),
            env=dict(filter(is_text, env.items())),
            inherit_env=False,
            cwd=cwd,
            network=cast(Network, self.network),
            gpu=self.gpu,
            kernel_name=getattr(self.parent, "kernel_name", ""),
            kernel_key=self._key(),
            notebook=self._notebook,
            front_end=True,
            front_end_session=self._session(),
            base=self.base,
            disk=self.disk,
            storage=self._storage(),
            limits=parse_limits({name: settings.value(name) for name in Limits.__struct_fields__}),
            share=folders.share,
            bind=(*folders.bind, *(os.path.join(cwd, path) for path in self.bind)),
        )

    def _storage(self) -> str:
        """The remote that its saves go to as well, as the setting says."""
        from ijfs.live.uploads.followed import LOCAL, remote_of
        from ijfs_engine import Repository
        from ijfs_engine.errors import UnknownNameError

        said = settings.value("storage")
        if said == LOCAL:
            return ""
        try:
            with Repository.open(self._repository) as repository:
                return remote_of(repository, said)
        except UnknownNameError as error:
            self.log.warning("what the kernel saves stays on this machine: %s", error)
            return ""

    def _session(self) -> str:
        """What the manager's own messages, and those of the clients that it makes, say that they come from."""
        return str(getattr(getattr(self.parent, "session", None), "session", ""))

    def _key(self) -> str:
        """The manager's own HMAC key, so that clients it made before the launch speak with the kernel too."""
        session = getattr(self.parent, "session", None)
        return session.key.decode() if session is not None else ""

    def _attach(self) -> InstanceInfo:
        """The live instance. At a restart, or where it has ended, it goes back to the snapshot it stands on; without
        one, it is left as it is."""
        info = client.describe(self._repository, self._instance)
        if info.status == "running" and self._launched and info.snapshot is not None:
            return client.restore(
                self._repository, info.snapshot, self._instance, replace=True, save_first=info.unsaved, busy="force"
            )
        if info.status == "running":
            return info
        if info.snapshot is None:
            raise InstanceExitedError(f"the program `{self._instance}` has ended, and no snapshot of it was made")
        return client.restore(self._repository, info.snapshot, self._instance, replace=True)

    def _exit_status(self) -> int | None:
        try:
            info = client.describe(self._repository, self._instance)
        except NoInstanceError:
            return UNKNOWN_EXIT_STATUS
        if info.status == "running":
            return None
        return UNKNOWN_EXIT_STATUS if info.exit_status is None else info.exit_status

    def _signal(self, signum: int) -> None:
        try:
            with client.connect(self._repository, self._instance) as keeper:
                keeper.signal(signum)
        except (InstanceExitedError, NoInstanceError):
            self.log.debug("signal %d: the kernel has ended", signum)

    def _save_unsaved(self, why: str) -> None:
        try:
            if client.describe(self._repository, self._instance).unsaved:
                with client.connect(self._repository, self._instance) as keeper:
                    saved = keeper.save(why, auto=True)
                self.log.info("%s: saved as %s %s", self._instance, saved.snapshot[:12], why)
        except IjfsError as error:
            self.log.warning("%s could not be saved %s: %s", self._instance, why, error)

    def set_notebook(self, env: Mapping[str, str]) -> None:
        """The kernel's notebook has another name from now on, as JPY_SESSION_NAME has it."""
        self._notebook = _notebook(env)
        if not self._managing:
            return
        try:
            with client.connect(self._repository, self._instance) as keeper:
                keeper.set_notebook(self._notebook)
        except IjfsError as error:
            self.log.warning("%s does not know of its notebook's new name: %s", self._instance, error)

    def _stop(self) -> None:
        try:
            with client.connect(self._repository, self._instance) as keeper:
                keeper.stop(timeout_s=0, force=True)
        except (InstanceExitedError, NoInstanceError):
            self.log.debug("kill: the kernel has ended")

    def _remove(self) -> None:
        try:
            work = written_work(self._repository, self._instance)
            if work is not None:
                if self._said == self._instance:  # managers clean up more than once
                    return
                self._said = self._instance
                self.log.warning(
                    "files that the kernel wrote in %s stay with the ended program `%s`: `ijfs cp %s:. DIRECTORY` "
                    "brings them out, `ijfs stop --rm %s` forgets them",
                    self._cwd,
                    *[self._instance] * 3,
                )
                return
            self._keep_what_is_elsewhere()
            client.remove(self._repository, self._instance)
        except NoInstanceError:
            self.log.debug("cleanup: the program is gone already")

    def _keep_what_is_elsewhere(self) -> None:
        """A snapshot of what the kernel wrote outside of its working directory, where that would be missed."""
        if not wrote_elsewhere(self._repository, self._instance):
            return
        kept = client.save_ended(self._repository, self._instance, message="what the kernel left when it ended")
        self.log.warning(
            "files that the kernel wrote outside of %s are in the snapshot %s: `ijfs ls -R %s` shows them",
            self._cwd,
            kept.snapshot[:12],
            kept.branch,
        )


def _notebook(env: Mapping[str, str]) -> str:
    """The notebook a Jupyter server starts the kernel for, as it says in JPY_SESSION_NAME; "" for anything else."""
    path = env.get("JPY_SESSION_NAME", "")
    return path if path.endswith(".ipynb") and os.path.isabs(path) else ""


def _as_jupyter_has_it(connection: dict[str, Any]) -> KernelConnectionInfo:
    """KernelManager compares keys as bytes; kernel.json holds text."""
    return cast(KernelConnectionInfo, {**connection, "key": connection["key"].encode()})

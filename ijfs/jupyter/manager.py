"""How a Jupyter server manages kernels that are instances: one that was joined is left, not ended; one that is ended is
saved first; and an instance is one kernel, however many notebooks are open on it.

The server extension puts these classes in the place of Jupyter's own, where nobody has chosen others.
"""

from __future__ import annotations

from typing import Any

from jupyter_server.gateway.gateway_client import GatewayClient
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager, ServerKernelManager
from jupyter_server.services.sessions.sessionmanager import SessionManager
from traitlets import Bool, default

from ijfs.jupyter.livespecs import PREFIX
from ijfs.jupyter.provisioner import JOINS, IjfsProvisioner


def take_part(app: Any) -> None:
    """Have a Jupyter server that is being made use these classes, unless it has kernels of a gateway, or somebody has
    chosen others."""
    clients: Any = GatewayClient
    if clients.instance(parent=app).gateway_enabled:
        return
    if "kernel_manager_class" not in app.config.ServerApp:
        app.kernel_manager_class = InstanceKernels
    if "session_manager_class" not in app.config.ServerApp:
        app.session_manager_class = InstanceSessions


class InstanceKernelManager(ServerKernelManager):
    """One kernel of a server; of kernels that are not ijfs's it is what it was before."""

    save_on_shutdown = Bool(
        True, config=True, help="Save an ijfs kernel before it is shut down or restarted, where it ran anything since."
    )

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:  # type: ignore[override]
        """End the kernel; one that is attached is left as it is, unless it begins again."""
        provisioner = self.provisioner
        if isinstance(provisioner, IjfsProvisioner):
            if provisioner.attached and not restart:
                provisioner.let_go()
                now = True  # nothing is asked of it
            elif self.save_on_shutdown:
                await provisioner.save_before_end("before it was restarted" if restart else "before it was shut down")
        await super().shutdown_kernel(now=now, restart=restart)

    def update_env(self, *, env: dict[str, str]) -> None:
        """The server says so when a notebook was renamed."""
        super().update_env(env=env)
        if isinstance(self.provisioner, IjfsProvisioner):
            self.provisioner.set_notebook(env)


class InstanceKernels(AsyncMappingKernelManager):
    """The kernels of a server."""

    @default("kernel_manager_class")
    def _default_kernel_manager_class(self) -> str:
        return f"{__name__}.{InstanceKernelManager.__name__}"

    _kept_once: set[str]

    def keep_once(self, kernel_id: str) -> None:
        """A notebook turns away from a kernel that another has open: the next request to shut it down is not meant."""
        self._kept_once = {*getattr(self, "_kept_once", ()), kernel_id}

    async def start_kernel(self, *, kernel_id: str | None = None, path: str | None = None, **kwargs: Any) -> str:  # type: ignore[override]
        """A kernel; where one is wished for that is a live instance, and this server has it, that very one."""
        name = str(kwargs.get("kernel_name") or "")
        joins = kwargs.get(JOINS) or (name.removeprefix(PREFIX) if name.startswith(PREFIX) else "")
        if kernel_id is None and joins:
            kernel_id = self._of_instance(str(joins))
        jupyters: Any = super()
        return str(await jupyters.start_kernel(kernel_id=kernel_id, path=path, **kwargs))

    _async_start_kernel = start_kernel

    async def shutdown_kernel(self, kernel_id: str, now: bool = False, restart: bool = False) -> None:  # type: ignore[override]
        """End a kernel, unless another notebook goes on with it."""
        kept: set[str] = getattr(self, "_kept_once", set())
        if kernel_id in kept:
            self._kept_once = kept - {kernel_id}
            return
        jupyters: Any = super()
        await jupyters.shutdown_kernel(kernel_id, now=now, restart=restart)

    _async_shutdown_kernel = shutdown_kernel  # type: ignore[assignment]

    def _of_instance(self, name: str) -> str | None:
        """The kernel that is this instance (kernel names are lower-case, an instance's need not be)."""
        for kernel_id in self.list_kernel_ids():
            provisioner = getattr(self.get_kernel(kernel_id), "provisioner", None)
            if isinstance(provisioner, IjfsProvisioner) and provisioner.instance.lower() == name.lower():
                return kernel_id
        return None


class InstanceSessions(SessionManager):
    """Which notebook has which kernel: what is done to one of two on the same kernel leaves the other alone."""

    async def update_session(self, session_id: str, **kwargs: Any) -> None:
        """A notebook has another kernel, path or name."""
        if "kernel_id" in kwargs:
            await self._keep_for_others(session_id, but=kwargs["kernel_id"])
        jupyters: Any = super()
        await jupyters.update_session(session_id, **kwargs)

    async def delete_session(self, session_id: str) -> None:
        """A notebook is shut down."""
        await self._keep_for_others(session_id)
        jupyters: Any = super()
        await jupyters.delete_session(session_id)

    async def _keep_for_others(self, session_id: str, but: str = "") -> None:
        """The kernel of a session that is given up, for another one, perhaps, goes on where a third has it, too."""
        lists: Any = self.list_sessions
        kernels = {session["id"]: (session.get("kernel") or {}).get("id") for session in await lists()}
        own = kernels.pop(session_id, None)
        if (
            own is not None
            and own != but
            and own in kernels.values()
            and isinstance(self.kernel_manager, InstanceKernels)
        ):
            self.kernel_manager.keep_once(own)

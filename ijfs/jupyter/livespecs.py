"""Live instances as kernels to choose from: a notebook opened on one is attached to it instead of starting another.

For a Jupyter server: `c.ServerApp.kernel_spec_manager_class = "ijfs.jupyter.livespecs.LiveKernelSpecManager"` lists
every live kernel of the repository beside the installed specs. For a program: `attached_manager`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_client.manager import KernelManager
from traitlets import Unicode

from ijfs.jupyter.kernelspec import PROVISIONER, installed
from ijfs.jupyter.repository import choose_repository
from ijfs.live.client import api as client
from ijfs.live.client.api import InstanceInfo

PREFIX = "ijfs-live-"
"""Before the instance's name in the kernel name. Jupyter's names are lower-case, an instance's need not be: names
that differ only by case show as one."""


_NO_RESOURCES = str(Path(__file__).parent / "resources")
"""Does not exist: for a live kernel whose spec is not installed any more, which has no logos then."""


class LiveKernelSpecManager(KernelSpecManager):
    """The installed kernel specs, and one for each live kernel."""

    repo = Unicode("", config=True, help="Repository; empty: $IJFS_REPO, else the user's data directory.")

    def find_kernel_specs(self) -> dict[str, str]:
        """Kernel names and resource directories. A live kernel has those of the spec it was started by; one that an
        installed spec is attached to shows as that alone."""
        found: dict[str, str] = super().find_kernel_specs()
        attached = {spec.config.get("attach") for spec in installed(KernelSpecManager())}
        live = {name: info for name, info in self._live().items() if info.name not in attached}
        return {**found, **{name: found.get(_spec_name(info), _NO_RESOURCES) for name, info in live.items()}}

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """The spec of that name; NoSuchKernel when it is neither installed nor live (any more)."""
        info = self._live().get(kernel_name.lower()) if kernel_name.startswith(PREFIX) else None
        return super().get_kernel_spec(kernel_name) if info is None else self._spec(info)

    def _language(self, info: InstanceInfo) -> str:
        """That of the spec which it was started by; where that is gone, of its command."""
        try:
            return str(super().get_kernel_spec(_spec_name(info)).language)
        except NoSuchKernel:
            return "python" if any("ipykernel" in word for word in info.argv) else ""

    def _live(self) -> dict[str, InstanceInfo]:
        instances = client.list_instances(choose_repository(self.repo))
        return {PREFIX + i.name.lower(): i for i in instances if i.kind == "kernel" and i.status == "running"}

    def _spec(self, info: InstanceInfo) -> KernelSpec:
        config = {"attach": info.name, "repo": str(choose_repository(self.repo))}
        return KernelSpec(
            argv=list(info.argv),
            display_name=f"{info.name} (live)",
            language=self._language(info),
            metadata={"kernel_provisioner": {"provisioner_name": PROVISIONER, "config": config}},
        )


def _spec_name(info: InstanceInfo) -> str:
    return str((info.connection or {}).get("kernel_name", "")).lower()


def attached_manager(
    repo: Path, instance: str, manager_class: type[KernelManager] = KernelManager, **traits: Any
) -> KernelManager:
    """A KernelManager for a live instance; its `start_kernel` attaches, its `shutdown_kernel` leaves it
    running."""
    specs = LiveKernelSpecManager(repo=str(repo))
    return manager_class(kernel_name=PREFIX + instance.lower(), kernel_spec_manager=specs, **traits)

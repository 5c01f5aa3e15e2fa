"""How a kernel of an installed kernel spec is started in a sandbox of its own. Called by ijfs.sdk.repository."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

from ijfs.jupyter.kernelspec import KernelSpecError
from ijfs.live.model.records import InstanceSpec


def kernel_spec(name: str, spec_name: str, *, env: Mapping[str, str], **options: Any) -> InstanceSpec:
    """The spec of an instance; `env` is added to the kernel spec's. KernelSpecError where there is none of that
    name."""
    try:
        found = KernelSpecManager().get_kernel_spec(spec_name)
    except NoSuchKernel:
        raise KernelSpecError(f"there is no kernel spec named '{spec_name}'") from None
    program, *arguments = found.argv
    return InstanceSpec(
        name=name,
        kind="kernel",
        argv=(sys.executable if program in ("python", "python3") else program, *arguments),
        env={**found.env, **env},
        kernel_name=spec_name,
        **options,
    )

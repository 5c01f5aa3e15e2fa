"""Kernel specs that start their kernels in a sandbox: make one from an existing spec, list them, remove one.

Called by `ijfs kernel install|list|remove`. A spec made here differs from the one it was made from by its names and
by the provisioner in its metadata; every Jupyter front end then starts sandboxed kernels without knowing it.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

from ijfs.guest.magics import auto_wishes
from ijfs_engine.errors import IjfsError

PROVISIONER = "ijfs-provisioner"
"""The entry point's name in pyproject.toml; a kernel spec's metadata refers to it."""


class KernelSpecError(IjfsError):
    """A kernel spec that cannot be made, found or removed."""

    exit_code = 2
    default_hint = "`jupyter kernelspec list` shows the kernel specs there are"


@dataclass(frozen=True)
class InstalledSpec:
    """A kernel spec whose kernels run in a sandbox. `config` is what the provisioner gets (see its traits)."""

    name: str
    display_name: str
    language: str
    directory: Path
    config: dict[str, Any]
    base: str = ""
    """The spec that it was made from."""


def install(
    base: str = "python3",
    *,
    name: str | None = None,
    display_name: str | None = None,
    repo: Path | None = None,
    network: str | None = None,
    gpu: bool = False,
    base_image: str | None = None,
    snapshot: str | None = None,
    attach: str | None = None,
    auto: str | None = None,
    disk: int = 0,
    share: Sequence[str] = (),
    prefix: Path | None = None,
    sys_prefix: bool = False,
    manager: KernelSpecManager | None = None,
) -> InstalledSpec:
    """Write a kernel spec made from `base`, for the user unless `prefix` or `sys_prefix` says where; replaces its own.

    `name` is "ijfs-BASE" by default, with `snapshot` or `attach` "ijfs-" and what that says; `display_name` is
    "BASE'S NAME (ijfs)". `repo`, `network`, `gpu`,
    `base_image` (what their files come from), `disk` (bytes of a disk of their own), `share` (folders that they share
    with the machine; relative to the notebook's),
    `snapshot` (new kernels begin as a restored copy of it), `attach` (new kernels *are* that live instance) and `auto`
    (they are saved after cells) become the provisioner's configuration. Raises `KernelSpecError` for an unknown base,
    a base that has a provisioner already, a name that Jupyter would refuse, one taken by a spec that is not ijfs's, or
    without `name` one taken by a spec whose kernels begin otherwise.
    """
    manager = manager or KernelSpecManager()
    source = _base_spec(manager, base)
    begins = {"snapshot": snapshot, "attach": attach}
    named = (name or _default_name(base, snapshot, attach)).lower()
    _refuse_taken(manager, named)
    if name is None:
        _refuse_of_another_kind(manager, named, begins)
    if auto:
        check_auto(auto)
    own = {"share": list(share)} if not any(begins.values()) else {}
    config = _config(repo=repo, network=network, gpu=gpu, base=base_image, auto=auto, disk=disk, **own, **begins)
    spec = _derive(source, base, display_name or _display_name(source, snapshot, attach), config)
    where = str(sys.prefix if sys_prefix else prefix) if (prefix or sys_prefix) else None
    directory = _write(manager, named, spec, Path(source.resource_dir), where)
    return _describe(named, directory, spec)


def check_auto(words: str) -> None:
    """Whether this is what `%ijfs auto` takes to be turned on; KernelSpecError."""
    first, *options = words.split() or [""]
    if first != "on" or auto_wishes(options) is None:
        raise KernelSpecError(
            f"auto is `on`, with options of `%ijfs auto on` perhaps, not {words!r}", hint="for example: on --every 60"
        )


def installed(manager: KernelSpecManager | None = None) -> list[InstalledSpec]:
    """Every spec that uses the provisioner and that Jupyter can find, sorted by name; unreadable ones are left out."""
    manager = manager or KernelSpecManager()
    found = []
    for name, directory in sorted(manager.find_kernel_specs().items()):
        spec = _read(Path(directory))
        if _is_ours(spec):
            found.append(_describe(name, Path(directory), spec))
    return found


def remove(name: str, manager: KernelSpecManager | None = None) -> Path:
    """Delete a kernel spec of ijfs's and return where it was; snapshots and live instances are not touched.

    Raises `KernelSpecError` for a name that is no spec, or one that does not use the provisioner.
    """
    manager = manager or KernelSpecManager()
    directory = manager.find_kernel_specs().get(name.lower())
    if directory is None:
        raise KernelSpecError(f"there is no kernel spec named {name!r}")
    if not _is_ours(_read(Path(directory))):
        raise KernelSpecError(
            f"the kernel spec {name!r} was not made by ijfs", hint=f"`jupyter kernelspec remove {name}` removes it"
        )
    return Path(manager.remove_kernel_spec(name.lower()))


def _base_spec(manager: KernelSpecManager, base: str) -> KernelSpec:
    try:
        spec = manager.get_kernel_spec(base)
    except NoSuchKernel:
        raise KernelSpecError(f"there is no kernel spec named {base!r} to make one from") from None
    if "kernel_provisioner" in spec.metadata:
        raise KernelSpecError(
            f"the kernel spec {base!r} has a provisioner of its own already",
            hint="name the plain spec it was made from",
        )
    return spec


def _refuse_taken(manager: KernelSpecManager, name: str) -> None:
    taken = manager.find_kernel_specs().get(name)
    if taken is not None and not _is_ours(_read(Path(taken))):
        raise KernelSpecError(f"a kernel spec named {name!r} is there already", hint="choose another with --name")


def _default_name(base: str, snapshot: str | None, attach: str | None) -> str:
    """A snapshot or program may have a name that Jupyter does not take (`lab~1`); an id is cut to ten digits."""
    if snapshot and re.fullmatch("[0-9a-f]{10,}", snapshot):
        return f"ijfs-{snapshot[:10]}"
    return "ijfs-" + re.sub("[^A-Za-z0-9._-]", "-", attach or snapshot or base)


def _refuse_of_another_kind(manager: KernelSpecManager, name: str, begins: dict[str, str | None]) -> None:
    """Notebooks that name a spec begin as it says: that changes only for who names the spec."""
    taken = manager.find_kernel_specs().get(name)
    if taken is None:
        return
    config = _provisioner(_read(Path(taken))).get("config")
    config = config if isinstance(config, dict) else {}
    if any(config.get(key) != value for key, value in begins.items()):
        raise KernelSpecError(
            f"the kernel spec {name!r} is there already, and its kernels begin otherwise",
            hint=f"choose another name with --name; `--name {name}` replaces it",
        )


def _config(*, repo: Path | None, **options: str | bool | int | list[str] | None) -> dict[str, Any]:
    if options.get("snapshot") and options.get("attach"):
        raise KernelSpecError("a kernel spec begins from a snapshot or attaches to a live kernel, not both")
    config: dict[str, Any] = {key: value for key, value in options.items() if value}
    if repo is not None:
        config["repo"] = str(repo.absolute())
    return config


def _display_name(source: KernelSpec, snapshot: str | None, attach: str | None) -> str:
    if snapshot or attach:
        return f"{snapshot or attach} (ijfs)"
    return f"{source.display_name.removesuffix(' (ipykernel)')} (ijfs)"


def _derive(source: KernelSpec, base: str, display_name: str, config: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = source.to_dict()
    spec["argv"] = [_absolute_python(spec["argv"][0]), *spec["argv"][1:]]
    spec["display_name"] = display_name
    metadata = dict(spec.get("metadata", {}))
    # CurveZMQ keys would have to reach the kernel inside; a manager that insists on them now refuses by itself.
    metadata.pop("supported_encryption", None)
    metadata["kernel_provisioner"] = {"provisioner_name": PROVISIONER, "config": config}
    metadata["ijfs"] = {"base": base}
    return {**spec, "metadata": metadata}


def _absolute_python(program: str) -> str:
    """ipykernel's wheel ships a spec that runs `python`, meaning the environment that Jupyter itself runs in."""
    return sys.executable if program in ("python", "python3") else program


def _write(manager: KernelSpecManager, name: str, spec: dict[str, Any], resources: Path, prefix: str | None) -> Path:
    with tempfile.TemporaryDirectory(prefix="ijfs-kernelspec-") as scratch:
        copy = Path(scratch) / "spec"
        copy.mkdir()
        for file in resources.iterdir():  # the logos a launcher shows
            if file.is_file() and file.name != "kernel.json":
                shutil.copyfile(file, copy / file.name)
        (copy / "kernel.json").write_text(json.dumps(spec, indent=1) + "\n")
        try:
            destination = manager.install_kernel_spec(str(copy), name, user=prefix is None, prefix=prefix)
        except ValueError as error:
            raise KernelSpecError(str(error)) from error
    return Path(destination)


def _read(directory: Path) -> dict[str, Any]:
    """A spec's kernel.json; {} when it is missing or broken, which Jupyter itself only warns about."""
    try:
        spec = json.loads((directory / "kernel.json").read_text())
    except (OSError, ValueError):
        return {}
    return spec if isinstance(spec, dict) else {}


def _is_ours(spec: dict[str, Any]) -> bool:
    return _provisioner(spec).get("provisioner_name") == PROVISIONER


def _provisioner(spec: dict[str, Any]) -> dict[str, Any]:
    """The provisioner's stanza of a spec; {} for one without, or with something else in its place."""
    stanza: Any = spec
    for key in ("metadata", "kernel_provisioner"):
        stanza = stanza.get(key) if isinstance(stanza, dict) else None
    return stanza if isinstance(stanza, dict) else {}


def _describe(name: str, directory: Path, spec: dict[str, Any]) -> InstalledSpec:
    config = _provisioner(spec).get("config", {})
    ours = spec.get("metadata", {}).get("ijfs", {})
    base = str(ours.get("base", "")) if isinstance(ours, dict) else ""
    return InstalledSpec(name, spec.get("display_name", name), spec.get("language", ""), directory, config, base)

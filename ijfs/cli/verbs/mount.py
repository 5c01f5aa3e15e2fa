"""`ijfs mount` and `ijfs umount`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer, write_json

if TYPE_CHECKING:
    from ijfs.fs.mountpoint import MountedRepository


@verb("mount")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--foreground", is_flag=True, help="Serve it from this process until Ctrl-C or `ijfs umount`.")
@click.option("--allow-other", is_flag=True, help="Let other users look at it too.")
def mount(app: App, directory: Path, foreground: bool, allow_other: bool) -> Answer | None:
    """Show all snapshots at DIRECTORY, read-only: `snapshots/`, and links in `branches/`, `tags/` and `live/`.

    Nothing is read before it is looked at, and any program can look.
    """
    from ijfs.fs import mountpoint

    app.repository()
    if foreground:
        _serve(app, directory, allow_other=allow_other)
        return None
    mounted = mountpoint.mount(app.repository_path, directory, allow_other=allow_other)

    def show(out: Printer) -> None:
        out.line("mounted at ", (str(mounted.mountpoint), "bold"), (f"  `ijfs umount {directory}` ends it", "dim"))

    return Answer(_mount_json(mounted), show)


def _serve(app: App, directory: Path, *, allow_other: bool) -> None:
    import trio

    from ijfs.fs import daemon, mountpoint

    where = mountpoint.prepare(directory)

    def ready() -> None:
        if app.json:
            write_json({"verb": "mount", "mountpoint": str(where), "repository": str(app.repository_path), "pid": None})
        else:
            app.note(f"mounted at {where}; Ctrl-C ends it")

    daemon.log_to_stderr()
    trio.run(lambda: daemon.serve(app.repository_path, where, allow_other=allow_other, ready=ready))


@verb("umount")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--lazy", is_flag=True, help="Out of sight now, gone when the last program lets go.")
def umount(app: App, directory: Path | None, lazy: bool) -> Answer:
    """Take the filesystem at DIRECTORY away. Without DIRECTORY, list the mounts of this repository."""
    from ijfs.fs import mountpoint

    if directory is None:
        return _list(mountpoint.mounts_of(app.repository_path))
    mountpoint.umount(directory, lazy=lazy)
    return Answer({"unmounted": str(directory)}, lambda out: out.line("unmounted ", (str(directory), "bold")))


def _list(found: list[MountedRepository]) -> Answer:
    def show(out: Printer) -> None:
        for mounted in found:
            state = f"pid {mounted.pid}" if mounted.pid else "dead: `ijfs umount` clears it away"
            out.line((str(mounted.mountpoint), "bold"), (f"  {state}", "dim"))
        if not found:
            out.line(("not mounted anywhere", "dim"))

    return Answer({"mounts": [_mount_json(mounted) for mounted in found]}, show)


def _mount_json(mounted: MountedRepository) -> dict[str, Any]:
    return {"mountpoint": str(mounted.mountpoint), "repository": str(mounted.repository), "pid": mounted.pid}


COMMANDS = {"mount": mount, "umount": umount}

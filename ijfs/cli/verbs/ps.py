"""`ijfs ps`."""

from __future__ import annotations

from ijfs.cli import instances
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer


@verb("ps")
def ps(app: App) -> Answer:
    """List live programs, and ended ones whose files are still there (`ijfs stop --rm` forgets them).

    MEMORY IN is the share of a lazily restored program's memory that has arrived.
    """
    from ijfs.live.client import list_instances

    app.repository()
    found = sorted(list_instances(app.repository_path), key=lambda i: (i.status == "exited", i.name))

    def show(out: Printer) -> None:
        if found:
            instances.table(out, found)
        else:
            out.line(("nothing is live: `ijfs run` or `ijfs kernel start` begins", "dim"))
        for info in found:
            if info.save_error:
                out.line((f"{info.name}: the last save was not stored: {info.save_error}", "red"))
            if info.note:
                out.line((f"{info.name}: {info.note}", "dim"))

    return Answer({"instances": [instances.instance_json(info) for info in found]}, show)


COMMANDS = {"ps": ps}

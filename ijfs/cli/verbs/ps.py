"""`ijfs ps`."""

from __future__ import annotations

from ijfs.cli import instances
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer


@verb("ps")
def ps(app: App) -> Answer:
    """List live programs, and ended ones whose files are still there (`ijfs stop --rm` forgets them).

    MEMORY IN is the share of a lazily restored program's memory that has arrived. A spare is a loaded process off which
    the next start is forked; it ends by itself.
    """
    import msgspec

    from ijfs.live.client.api import list_instances
    from ijfs.live.process import fork_request

    app.repository()
    found = sorted(list_instances(app.repository_path), key=lambda i: (i.status == "exited", i.name))

    waiting = fork_request.forkserver_info(app.repository_path)

    def show(out: Printer) -> None:
        if found:
            instances.table(out, found)
        else:
            out.line(("nothing is live: `ijfs run` or `ijfs kernel start` begins", "dim"))
        for info in found:
            if info.damage:
                out.line((f"{info.name}: its memory is not what was saved: {info.damage}", "red"))
            if info.save_error:
                out.line((f"{info.name}: the last save was not stored: {info.save_error}", "red"))
            if info.note:
                out.line((f"{info.name}: {info.note}", "dim"))
        instances.spare(out, waiting)

    data = {"instances": [instances.instance_json(info) for info in found], "spare": msgspec.to_builtins(waiting)}
    return Answer(data, show)


COMMANDS = {"ps": ps}

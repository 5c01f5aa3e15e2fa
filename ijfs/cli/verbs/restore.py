"""`ijfs restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ijfs.cli import first_moment, instances, starting, text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import INSTANCE, SNAPSHOT
from ijfs.history.snapshots import program_of

if TYPE_CHECKING:
    from ijfs.live.client.api import InstanceInfo


@verb("restore")
@click.argument("snapshot", type=SNAPSHOT)
@click.option("--name", metavar="N", type=INSTANCE, help="Its name (default: the one it was saved under).")
@click.option("--eager", is_flag=True, help="Read all memory first (default: it runs at once, memory follows).")
@click.option("--replace", is_flag=True, help="Go back in place: the live program of that name ends.")
@click.option("--wait", is_flag=True, help="Return when all its memory is in.")
@click.option("--gpu", "gpus", multiple=True, metavar="G", help="Put its GPU memory on this GPU (index or UUID).")
@starting.port_option
@starting.env_options
@click.option("--same-random", is_flag=True, help="Let it draw the same random numbers as other copies.")
def restore(
    app: App,
    snapshot: str,
    name: str | None,
    eager: bool,
    replace: bool,
    wait: bool,
    gpus: tuple[str, ...],
    ports: tuple[starting.GivenPort, ...],
    env: tuple[str, ...],
    env_files: tuple[Path, ...],
    same_random: bool,
) -> Answer:
    """Bring SNAPSHOT back to life, beside everything that is live.

    Its environment is that of when it was saved. What --env adds a program gets that can be told: a Python kernel, or
    one that uses `ijfs.after_restore`; every command that is run inside has it.
    """
    import msgspec

    from ijfs.live.client import api as client

    repository = app.repository()
    record = repository.snapshot(repository.resolve(snapshot))
    instances.require_program(record)
    wish = program_of(record) or snapshot
    given = starting.variables(env, env_files)

    def restored(chosen: str) -> tuple[InstanceInfo, InstanceInfo | None]:
        progress = app.progress(f"restore {chosen}")
        info = client.restore(
            app.repository_path,
            record.id.hex(),
            chosen,
            eager=eager,
            replace=replace,
            gpus=gpus,
            same_random=same_random,
            env=given,
            ports=starting.all_chosen(ports),
            on_event=progress.event,
        )
        ended = first_moment.ended(app, info, first_moment.RESTORE)
        if given and not ended:
            starting.tell_kernel(app, info, given)
        if wait and info.memory < 1 and not ended:
            with client.connect(app.repository_path, chosen, on_event=progress.event) as keeper:
                # How long it took to run is said, not how long the rest of its memory took.
                info = msgspec.structs.replace(keeper.wait_memory(), phases=info.phases)
        return info, ended

    info, ended = instances.named(app, name or (wish if replace else None), wish, restored)

    def show(out: Printer) -> None:
        instances.started(out, info, f"{'ran' if ended else 'runs'} from {text.short(record.id)}")
        if info.memory < 1 and not ended:
            out.line((f"  {info.memory:.0%} of its memory is in, the rest follows while it runs", "dim"))
        starting.show_ports(out, info)

    data = {"snapshot": record.id.hex(), "instance": instances.instance_json(ended or info)}
    return Answer(data, show, first_moment.exit_code(ended))


COMMANDS = {"restore": restore}

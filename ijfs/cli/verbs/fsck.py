"""`ijfs fsck`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer

if TYPE_CHECKING:
    from ijfs_engine import Damage, FsckReport


MOST = 20
"""Faults that are printed; all are in the JSON."""


@verb("fsck")
@click.option("--repair", is_flag=True, help="Mend what can be mended; the index is rebuilt from the packs.")
@click.option("--quick", is_flag=True, help="Check references only, not every stored byte.")
def fsck(app: App, repair: bool, quick: bool) -> Answer:
    """Check every byte and reference. Damage is named with the snapshots and files it hurts; exit code 1."""
    repository = app.repository(damaged=repair)
    progress = app.progress("fsck")
    found = repository.fsck(repair=repair, data=not quick, progress=progress)
    left = not found.clean and not (repair and repository.fsck(data=False).clean)
    data = {
        "clean": found.clean,
        **{name: getattr(found, name) for name in ("snapshots", "objects", "chunks", "packs", "bytes_read")},
        "damage": [_damage_json(d) for d in found.damage],
        "repaired": list(found.repaired),
        "strays": list(found.strays),
    }
    return Answer(
        data, lambda out: _report(out, found, left=left, most=None if app.verbose else MOST), 1 if left else 0
    )


def _damage_json(damage: Damage) -> dict[str, Any]:
    return {
        "what": damage.what,
        "id": damage.id.hex() if damage.id else None,
        "where": damage.where,
        "message": damage.message,
        "snapshots": [s.hex() for s in damage.snapshots],
        "files": list(damage.files),
    }


def _report(out: Printer, found: FsckReport, *, left: bool, most: int | None) -> None:
    # What hurts somebody first: a pack that was cut short is thousands of faults.
    faults = sorted(found.damage, key=lambda damage: not damage.snapshots)
    for damage in faults[:most]:
        out.line((f"{damage.what}: ", "bold red"), damage.message, (f"  ({damage.where})", "dim"))
        if damage.snapshots:
            hurt = text.listing(text.short(s) for s in damage.snapshots[:8])
            more = len(damage.snapshots) - 8
            out.line("  hurts ", (hurt, "yellow"), f" and {more} more" if more > 0 else "")
        for file in damage.files[:5]:
            out.line(("    " + file, "dim"))
    if most is not None and len(faults) > most:
        out.line((f"and {len(faults) - most:,} more: -v shows all", "dim"))
    for line in found.repaired:
        out.line(("repaired: ", "green"), line)
    if found.strays:
        out.line(("left alone: ", "yellow"), text.listing(found.strays), ": no pack of this repository")
    if left and found.repaired:
        out.line(
            ("left: ", "bold red"), "bytes that nothing stored has; a save that brings them, or `ijfs rm`, mends that"
        )
    checked = (
        f"{text.count(found.snapshots, 'snapshot')}, {text.count(found.objects, 'object')}, "
        f"{text.count(found.chunks, 'chunk')} in {text.count(found.packs, 'pack')}, {text.size(found.bytes_read)} read"
    )
    if found.clean:
        out.line(("whole: ", "bold green"), checked)
    else:
        out.line((text.count(len(found.damage), "fault"), "bold red"), f" in {checked}")


COMMANDS = {"fsck": fsck}

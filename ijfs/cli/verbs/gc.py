"""`ijfs gc`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer

if TYPE_CHECKING:
    from ijfs_engine import Repository


@verb("gc")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be freed.")
@click.option("--recompress", is_flag=True, help="Also pack what stays again, smaller and slower: minutes for 10 GB.")
def gc(app: App, dry_run: bool, recompress: bool) -> Answer:
    """Free what no branch, tag or live program reaches. Saves may run meanwhile."""
    import msgspec

    repository = app.repository()
    progress = app.progress("gc")
    swept = [] if dry_run else _sweep_bases(repository)
    found = repository.gc(dry_run=dry_run, recompress=recompress, progress=progress)

    def show(out: Printer) -> None:
        verb_ = "would free" if dry_run else "freed"
        out.line(
            f"{verb_} ",
            (text.size(found.freed), "bold"),
            f": {text.size(found.bytes_before)} on disk {'now' if dry_run else 'before'}, "
            f"{text.size(found.bytes_after)} {'then' if dry_run else 'now'}",
        )
        out.line(
            (
                f"  {text.count(found.snapshots_removed, 'snapshot')}, {text.count(found.chunks_removed, 'chunk')}, "
                f"{text.count(found.objects_removed, 'object')}; {text.count(found.packs_removed, 'pack')} removed, "
                f"{found.packs_rewritten} rewritten",
                "dim",
            )
        )
        if recompress:
            out.line((f"  {text.count(found.chunks_recompressed, 'chunk')} packed smaller", "dim"))
        for kept in found.packs_kept:
            out.line((f"  {kept.pack} stays whole, because it is damaged: {kept.why}", "yellow"))
        if found.packs_kept:
            out.line(("  `ijfs fsck` names what is damaged", "dim"))
        if swept:
            out.line((f"  {text.count(len(swept), 'base')} taken apart that nothing stands on", "dim"))
        for holder in found.held:
            what = f"{text.count(holder.packs, 'removed pack')} ({text.size(holder.bytes)})"
            out.line((f"  {what} still held open by process {holder.pid}: {holder.name}", "yellow"))
        if found.chunks_condemned:
            out.line((f"  {text.count(found.chunks_condemned, 'chunk')} wait for a running save to end", "dim"))

    return Answer({**msgspec.to_builtins(found), "freed": found.freed, "bases_removed": swept}, show)


def _sweep_bases(repository: Repository) -> list[str]:
    """The directories of bases that nothing needs; a repository without any does not load what bases need."""
    if not (repository.path / "bases").is_dir():
        return []
    from ijfs.live.bases.versions import sweep

    return sweep(repository)


COMMANDS = {"gc": gc}

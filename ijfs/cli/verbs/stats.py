"""`ijfs stats`."""

from __future__ import annotations

from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer


@verb("stats")
def stats(app: App) -> Answer:
    """Count what the repository holds; from the index, at once."""
    import msgspec

    found = app.repository().stats()

    def show(out: Printer) -> None:
        disk = found.pack_bytes + found.index_bytes + found.journal_bytes
        for name, value in (
            ("repository", str(app.repository_path)),
            ("format", f"version {found.format_version}"),
            (
                "snapshots",
                f"{found.snapshots:,} on {text.count(found.branches, 'branch', 'branches')}, "
                f"{text.count(found.tags, 'tag')}",
            ),
            ("chunks", f"{found.chunks:,}"),
            ("objects", f"{found.objects:,} (trees, files, page tables)"),
            ("fingerprints", f"{found.sidecars:,} tables"),
            ("packs", f"{found.packs:,}, {text.size(found.pack_bytes)}"),
            ("index", text.size(found.index_bytes)),
            ("journal", text.size(found.journal_bytes)),
            ("on disk", text.size(disk)),
        ):
            out.line((f"{name:<13}", "dim"), value)

    return Answer({"path": str(app.repository_path), **msgspec.to_builtins(found)}, show)


COMMANDS = {"stats": stats}

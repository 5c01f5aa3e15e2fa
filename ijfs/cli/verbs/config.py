"""`ijfs config`."""

from __future__ import annotations

import click

from ijfs import settings
from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Column, Printer
from ijfs.cli.params import needless

COLUMNS = [
    Column("SETTING", style="bold"),
    Column("VALUE"),
    Column("FROM", flex=True),
    Column("WHAT IT IS", flex=True, drop=1),
]


@verb("config")
@needless("-l", "--list")
@needless("--global")
@click.argument("name", required=False, metavar="[NAME]")
@click.argument("value", required=False, metavar="[VALUE]")
@click.option("--unset", is_flag=True, help="Take NAME out of the file.")
def config(app: App, name: str | None, value: str | None, unset: bool) -> Answer:
    """Show each setting and where its value comes from; or set NAME to VALUE in the file.

    An option of the command line wins over all of these; then a variable of a setting's own (IJFS_REPO), then
    IJFS_DEFAULTS ("network=slirp4netns gpu=true"), then the file, then what is built in.
    """
    if name is None and unset:
        raise click.UsageError("--unset NAME says which")
    if name is not None and (unset or value is not None):
        settings.write(name, None if unset else value)
    found = settings.values()
    if name is not None:
        if name not in found:
            raise settings.SettingError(f"there is no setting '{name}'")
        found = {name: found[name]}
    rows = [
        {
            "name": key,
            "value": one.value,
            "source": one.source,
            "default": one.setting.default,
            "about": one.setting.about,
        }
        for key, one in found.items()
    ]
    return Answer(
        {"path": str(settings.path()), "settings": rows}, lambda out: _show(out, rows, alone=name is not None)
    )


def _show(out: Printer, rows: list[dict[str, str]], *, alone: bool) -> None:
    if alone and not out.terminal:
        out.line(rows[0]["value"])
        return
    out.table(
        COLUMNS,
        (
            [row["name"], row["value"] or ("–", "dim"), (text.place(row["source"]), "dim"), (row["about"], "dim")]
            for row in rows
        ),
    )
    if not alone:
        out.line()
        out.line((f"`ijfs config NAME VALUE` writes into {text.place(str(settings.path()))}", "dim"))


COMMANDS = {"config": config}

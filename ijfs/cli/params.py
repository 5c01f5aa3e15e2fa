"""Parameter types that know what a shell may complete: snapshots, branches, tags, live names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click
from click.shell_completion import CompletionItem

from ijfs.cli import text
from ijfs.cli.app import App


def _candidates(ctx: click.Context, *, snapshots: bool, refs: bool, live: bool) -> Iterable[tuple[str, str]]:
    app = ctx.ensure_object(App)
    if snapshots or refs:
        repository = app.repository()
        yield from ((name, "branch") for name in repository.refs.branches())
        yield from ((name, "tag") for name in repository.refs.tags())
        if snapshots:
            yield ("latest", "the newest snapshot")
            yield from ((text.short(s.id), text.first_line(s.message)) for s in repository.snapshots()[:50])
    if live:
        from ijfs.live.client.api import list_instances

        yield from ((info.name, "live") for info in list_instances(app.repository_path))


if TYPE_CHECKING:
    _StringType = click.ParamType[str]
else:  # click 8.1's is not generic
    _StringType = click.ParamType


class Name(_StringType):
    """A string; completion offers what the repository holds. The engine, not this, checks names."""

    def __init__(self, what: str, *, snapshots: bool = False, refs: bool = False, live: bool = False) -> None:
        self.name = what
        self.sources = {"snapshots": snapshots, "refs": refs, "live": live}

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """What fits. A shell's completion must never show an error, so none is let out."""
        try:
            found = list(_candidates(ctx, **self.sources))
        except Exception:
            return []
        return [CompletionItem(name, help=about) for name, about in found if name.startswith(incomplete)]


SNAPSHOT = Name("snapshot", snapshots=True, refs=True)
REF = Name("name", refs=True)
INSTANCE = Name("name", live=True)
ANY = Name("name", snapshots=True, refs=True, live=True)


_F = TypeVar("_F", bound=Callable[..., Any])


def needless(*names: str) -> Callable[[_F], _F]:
    """An option of a like tool that asks for what is done here anyway: taken, and nothing more."""
    return click.option(*names, is_flag=True, hidden=True, expose_value=False)


def elsewhere(*names: str, said: str) -> Callable[[_F], _F]:
    """An option of a like tool for what is done in another way here: a usage error that says how."""

    def refuse(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            raise click.UsageError(f"there is no {names[0]}: {said}", ctx)

    return click.option(*names, is_flag=True, hidden=True, expose_value=False, callback=refuse, is_eager=True)


class Message(_StringType):
    """A snapshot's message; what is not UTF-8 in it is made visible, and no reason to save nothing."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return text.message(str(value))


MESSAGE = Message()


if TYPE_CHECKING:
    _SecondsType = click.ParamType[float]
else:
    _SecondsType = click.ParamType


class Seconds(click.FloatRange):
    """A number of seconds from 0 on (`min_open`: not 0 itself). `nan`, `inf` and what no clock counts are none."""

    name = "seconds"
    _LONGEST: ClassVar = 1_000_000_000

    def __init__(self, *, min_open: bool = False) -> None:
        super().__init__(min=0, min_open=min_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Seconds."""
        seconds = super().convert(value, param, ctx)
        if not seconds <= self._LONGEST:  # nan neither
            self.fail(f"{str(value)!r} is no number of seconds up to {self._LONGEST:,}", param, ctx)
        return seconds


class Age(_SecondsType):
    """A length of time, as `90s`, `30m`, `12h`, `7d`, `2w`; in seconds."""

    name = "age"
    _UNITS: ClassVar = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        number, unit = str(value)[:-1], self._UNITS.get(str(value)[-1:])
        if unit is None or not number.isdecimal() or not number.isascii():
            self.fail(f"{str(value)!r} is no length of time: 90s, 30m, 12h, 7d or 2w", param, ctx)
        return float(int(number) * unit)


AGE = Age()


if TYPE_CHECKING:
    _BytesType = click.ParamType[int]
else:
    _BytesType = click.ParamType


class Size(_BytesType):
    """A number of bytes, as `512M`, `10G`, `1T`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        if isinstance(value, int):  # the option's default
            return value
        number, unit = str(value)[:-1], "KMGT".find(str(value)[-1:].upper())
        if unit < 0 or not number.isdecimal() or not number.isascii():
            self.fail(f"{str(value)!r} is no size: 512M, 10G or 1T", param, ctx)
        return int(number) << 10 * (unit + 1)


SIZE = Size()

NO_LIMIT = "none"


class Limit(_BytesType):
    """A limit: what `of` takes, or `none`, which is 0."""

    def __init__(self, of: click.ParamType[Any]) -> None:
        self.name, self._of = of.name, of

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A number."""
        return 0 if value == NO_LIMIT else self._of.convert(value, param, ctx)

"""Options that `run`, `kernel start`, `restore` and `fork` share: ports, variables; and what is said before hours of
work go into a program that could not be saved."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import click

from ijfs import settings
from ijfs.cli import detach_keys
from ijfs.cli.app import App
from ijfs.cli.output import Printer
from ijfs.cli.params import SIZE, Limit, Seconds

if TYPE_CHECKING:
    from ijfs.live.client.api import HostPort, InstanceInfo
    from ijfs.live.model.records import Hooks, OnIdle

TOLD_S = 10.0
"""How long a kernel may take to take variables: one that was saved in the middle of a cell is busy with that."""

F = TypeVar("F", bound=Callable[..., Any])


UNASKED = 1024
"""Ports here that are taken for the same one inside without being named: below are those of the machine's services."""


class GivenPort(NamedTuple):
    """`--port` as it was typed: the port inside, the one on this machine (0: any that is free), the address; whether
    any other will do where that is taken."""

    inside: int
    host: int
    address: str
    or_any: bool = False


if TYPE_CHECKING:
    _PortType = click.ParamType[GivenPort]
else:  # click 8.1's is not generic
    _PortType = click.ParamType


class Port(_PortType):
    """`[[ADDRESS:]HOST:]INSIDE`, as docker has it."""

    name = "port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> GivenPort:
        """GivenPort; a usage error for what is none."""
        if isinstance(value, GivenPort):
            return value
        words = str(value).removesuffix("/tcp").split(":")
        address = words.pop(0) if len(words) == 3 else settings.value("port_address")
        numbers = [self._number(word, str(value)) for word in words]
        if len(words) > 2 or not re.fullmatch(r"\d+(\.\d+){3}|localhost", address):
            self.fail(f"'{value}' is no port: 8000, 9000:8000 or 0.0.0.0:9000:8000", param, ctx)
        address = "127.0.0.1" if address == "localhost" else address
        if len(numbers) == 2:
            return GivenPort(numbers[1], numbers[0], address)
        [inside] = numbers
        return GivenPort(inside, inside, address, or_any=True) if inside >= UNASKED else GivenPort(inside, 0, address)

    def _number(self, word: str, value: str) -> int:
        if not (word.isascii() and word.isdecimal() and 1 <= int(word) <= 65535):
            self.fail(f"'{value}' is no port: 8000, 9000:8000 or 0.0.0.0:9000:8000, each from 1 to 65535")
        return int(word)


if TYPE_CHECKING:
    _KeysType = click.ParamType[bytes]
else:
    _KeysType = click.ParamType


class Keys(_KeysType):
    """`ctrl-p,ctrl-q`, as docker has it; as a terminal sends it."""

    name = "keys"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """Bytes; a usage error for what is no list of keys."""
        if isinstance(value, bytes):
            return value
        try:
            return detach_keys.bytes_of(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class WayOut(NamedTuple):
    """`network` and `egress` of an InstanceSpec."""

    network: Literal["none", "slirp4netns"]
    egress: tuple[str, ...] = ()


if TYPE_CHECKING:
    _WayOutType = click.ParamType[WayOut]
else:
    _WayOutType = click.ParamType


class Network(_WayOutType):
    """`none`, `slirp4netns` or `allow=HOST:PORT,…`."""

    name = "network"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> WayOut:
        """WayOut; a usage error for what is none."""
        if isinstance(value, WayOut):
            return value
        if value in ("none", "slirp4netns"):
            return WayOut(value)
        if not str(value).startswith("allow="):
            self.fail(f"'{value}' is none of none, slirp4netns, allow=HOST:PORT,…", param, ctx)
        from ijfs.live.errors import CommandError
        from ijfs.live.sandbox import egress

        words = tuple(word.strip() for word in str(value).removeprefix("allow=").split(","))
        try:
            egress.parse(words)
        except CommandError as error:
            self.fail(f"{error}: {error.hint}" if error.hint else str(error), param, ctx)
        return WayOut("slirp4netns", words)


NETWORKS = click.Choice(["none", "slirp4netns"])
NETWORK_HELP = "`none` (the default): a loopback of its own and no way out; `slirp4netns`: outgoing connections."
BASE_HELP = (
    "The base its files come from (default: this machine's files; in a container their base; `none`: its files)."
)

# Their defaults are the user's (ijfs.settings).
network_option = click.option("--network", type=NETWORKS, default=lambda: settings.value("network"), help=NETWORK_HELP)
way_out_option = click.option(
    "--network",
    type=Network(),
    default=lambda: settings.value("network"),
    metavar="none|slirp4netns|allow=HOST:PORT,…",
    help="`none` (the default): a loopback of its own and no way out; `slirp4netns`: outgoing connections; `allow=`: "
    "to these places alone.",
)
gpu_option = click.option("--gpu/--no-gpu", default=lambda: settings.is_true("gpu"), help="Give it the machine's GPUs.")
base_option = click.option("--base", default=lambda: settings.value("base"), metavar="NAME", help=BASE_HELP)

user_option = click.option(
    "-u",
    "--user",
    default=lambda: settings.value("user"),
    metavar="NAME",
    help="Run it as this user, by name or number; `sudo`: as who called sudo (default: root).",
)

ttl_option = click.option(
    "--ttl",
    type=Seconds(min_open=True),
    metavar="S",
    help="End it after S seconds; copies have as many.",
)


def idle_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--idle` and `--on-idle`, which the function gets as `idle`: None where nobody said."""

    @functools.wraps(function)
    def gathered(*args: Any, idle: float | None, on_idle: OnIdle | None, **given: Any) -> Any:
        from ijfs.live.model.records import Idle

        if on_idle is not None and idle is None:
            raise click.UsageError("--on-idle says what is done after --idle S seconds")
        chosen = None if idle is None else Idle(after_s=idle, then=on_idle or "park")
        return function(*args, idle=chosen, **given)

    click.option(
        "--on-idle",
        type=click.Choice(["park", "kill"]),
        help="`park` (the default): save it and end it, `ijfs wake` brings it back; `kill`: end it.",
    )(gathered)
    click.option(
        "--idle",
        type=Limit(Seconds(min_open=True)),
        metavar="S",
        help="When nobody used it for S seconds and it did nothing; copies as well; `none`: never.",
    )(gathered)
    return gathered


disk_option = click.option(
    "--disk",
    type=SIZE,
    default=0,
    metavar="SIZE",
    help="A disk of its own for what it writes: 10G, 512M. Its files then keep their inode numbers.",
)

SHARE_HELP = (
    "A folder that stays this machine's own: it is written through, each save keeps its state, a copy gets its own; "
    "`none` for none."
)

share_option = click.option(
    "--share",
    "share",
    multiple=True,
    default=lambda: settings.folders(settings.value("share")),
    metavar="DIR",
    help=SHARE_HELP,
)

bind_option = click.option(
    "--bind",
    "bind",
    multiple=True,
    metavar="DIR[:ro]",
    help="A folder of this machine's that no save keeps, for large data; `:ro`: not to write to.",
)

files_option = click.option(
    "--files",
    type=click.Choice(["keep", "restore", "private"]),
    help="Folders it shared: as they are now, put back as they were, or a copy as they were (default: asked at a "
    "terminal, else `keep` under the name that was saved, `private` under another).",
)
on_demand_option = click.option(
    "--on-demand",
    is_flag=True,
    help="Memory that it does not touch takes none here: it comes when it is saved. For many copies at once.",
)
_HOOK = "A request (`POST http://127.0.0.1:8000/sleep`), `file:/PATH`, or a command inside"


def require_one_way(everything: bool, on_demand: bool) -> None:
    """click.UsageError for who wants all memory, and only what is touched."""
    if everything and on_demand:
        raise click.UsageError("--on-demand leaves memory where it is; --eager and --wait bring all of it in")


def hook_options(function: F) -> F:
    """`--before-save`, `--after-save`, `--after-restore`, `--ready`."""
    about = {
        "before-save": "before each save and park; one that fails refuses it.",
        "after-save": "after each save, and at a wake.",
        "after-restore": "after each restore, before anyone is let in.",
        "ready": "until it succeeds the program counts as starting, and nobody is let in.",
    }
    for name, when in reversed(about.items()):
        option = click.option(f"--{name}", multiple=True, metavar="HOOK", help=f"{_HOOK}: {when}")
        function = option(function)
    return function


def hooks(
    before_save: Sequence[str], after_save: Sequence[str], after_restore: Sequence[str], ready: Sequence[str]
) -> Hooks:
    """What the options say."""
    from ijfs.live.model.records import Hooks

    return Hooks(
        before_save=tuple(before_save),
        after_save=tuple(after_save),
        after_restore=tuple(after_restore),
        ready=tuple(ready),
    )


def limit_options(*, anew: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--memory`, `--cpus`, `--pids` and `--io`, which the function gets as `limits`. `anew`: where nobody says, the
    settings do; else what is brought back has those that it had."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def gathered(*args: Any, **given: Any) -> Any:
            from ijfs.live.model.records import Limits

            return function(*args, limits=Limits(**{name: given.pop(name) for name in LIMITS}), **given)

        for name, (kind, metavar, about) in reversed(LIMITS.items()):
            default = functools.partial(_set_limit, name) if anew else None
            option = click.option(f"--{name}", type=Limit(kind), default=default, metavar=metavar, help=about)
            option(gathered)
        return gathered

    return add


def _set_limit(name: str) -> str | None:
    return settings.value(name) or None


LIMITS: dict[str, tuple[click.ParamType[Any], str, str]] = {
    "memory": (SIZE, "SIZE", "How much memory it may take: 4G, 512M; copies as much again; `none`: no limit."),
    "cpus": (click.FloatRange(0.01, 10_000), "N", "How many processors it may keep busy: 2, 0.5."),
    "pids": (click.IntRange(1, 1 << 22), "N", "How many processes and threads it may have (default: 8192 or more)."),
    "io": (SIZE, "RATE", "Bytes a second that it may read, and write, on the repository's disk: 100M."),
}
"""What can be limited: its type, and what is said of it."""

storage_option = click.option(
    "--storage",
    default=lambda: settings.value("storage"),
    metavar="REMOTE",
    help="Where its saves go as well: a remote, `s3` (origin, or the only one), or `local` (nowhere; the default).",
)


def storage_of(app: App, said: str) -> str:
    """The remote that --storage means; "" for none. UnknownNameError where it was typed; what is only a setting is for
    repositories that have that remote."""
    from ijfs.live.uploads.followed import remote_of
    from ijfs_engine.errors import UnknownNameError

    try:
        return remote_of(app.repository(), said)
    except UnknownNameError as error:
        if click.get_current_context().get_parameter_source("storage") is click.core.ParameterSource.COMMANDLINE:
            raise
        app.warn(f"what it saves stays on this machine, in spite of the setting `storage`: {error}")
        return ""


detach_keys_option = click.option(
    "--detach-keys",
    "keys",
    type=Keys(),
    default=lambda: settings.value("detach_keys"),
    metavar="KEYS",
    help="What leaves the terminal without ending the program (default: ctrl-p,ctrl-q).",
)

privileged_option = click.option(
    "--privileged", is_flag=True, help="With all rights of root: mounts, devices, the machine's settings, sudo."
)

replace_option = click.option(
    "--replace", is_flag=True, help="Let an ended program of that name go, with its files and log, saved or not."
)

port_option = click.option(
    "-p",
    "--port",
    "ports",
    type=Port(),
    multiple=True,
    metavar="[HOST:]INSIDE",
    help="A port inside to be reached from here at HOST (default: at the same one, or any where that is taken); "
    "0.0.0.0:HOST:INSIDE for others, too.",
)


def env_options(function: F) -> F:
    """`--env` and `--env-file`."""
    function = click.option(
        "-e", "--env", "env", multiple=True, metavar="NAME[=VALUE]", help="A variable for it; without VALUE, as here."
    )(function)
    return click.option(
        "--env-file",
        "env_files",
        multiple=True,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Variables from a file, a NAME=VALUE a line.",
    )(function)


def secret_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--secret` and `--secret-file`, which the function gets as `secrets`."""

    @functools.wraps(function)
    def gathered(*args: Any, secret: tuple[str, ...], secret_files: tuple[Path, ...], **given: Any) -> Any:
        return function(*args, secrets=variables(secret, secret_files), **given)

    click.option(
        "--secret", multiple=True, metavar="NAME[=VALUE]", help="A value for `ijfs.secret`, in no snapshot; or as here."
    )(gathered)
    click.option(
        "--secret-file",
        "secret_files",
        multiple=True,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Such values from a file, a NAME=VALUE a line.",
    )(gathered)
    return gathered


def variables(env: Sequence[str], files: Sequence[Path], *, here: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the options say; a variable of the command line wins over one of a file, the last of either counts. `here`:
    where those without a value are taken from."""
    found: dict[str, str] = {}
    for file in files:
        for number, line in enumerate(file.read_text(errors="surrogateescape").splitlines(), start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                found.update([_variable(line.lstrip(), f"{file}, line {number}", here)])
    for word in env:
        found.update([_variable(word, "--env", here)])
    return found


def _variable(word: str, where: str, here: Mapping[str, str]) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not name or any(c.isspace() for c in name):
        raise click.UsageError(f"{where}: '{word}' is not NAME=VALUE")
    if not equals:
        if name not in here:
            raise click.UsageError(f"{where}: there is no variable {name} here: write {name}=VALUE")
        value = here[name]
    return name, value


def folders(given: Sequence[str]) -> tuple[str, ...]:
    """Folders as they were typed, as the program is to have them; none where that was said."""
    return () if settings.NO_FOLDERS in given else tuple(os.path.abspath(path) for path in given)


def published(ports: Sequence[GivenPort]) -> tuple[HostPort, ...]:
    """The ports that were chosen on this machine's side."""
    from ijfs.live.client.api import HostPort

    return tuple(HostPort(*port) for port in ports if port.host or port.address != "127.0.0.1")


def all_chosen(ports: Sequence[GivenPort]) -> tuple[HostPort, ...]:
    """All that were given, for a program whose snapshot may know other ones."""
    from ijfs.live.client.api import HostPort

    return tuple(HostPort(*port) for port in ports)


def tell_kernel(app: App, info: InstanceInfo, given: Mapping[str, str]) -> None:
    """Have a restored Python kernel take variables, by a cell that leaves nothing in its history; a warning where it is
    busy, or no Python."""
    if info.kind != "kernel" or info.connection_file is None:
        return
    from ijfs.jupyter.cells import run_cell
    from ijfs_engine.errors import IjfsError

    try:
        told = run_cell(info.connection_file, f"__import__('os').environ.update({dict(given)!r})", TOLD_S)
    except IjfsError as error:
        app.warn(f"`{info.name}` keeps the environment that it was saved with: {error}")
        return
    if told.status != "ok":
        app.warn(f"`{info.name}` keeps the environment that it was saved with: it is no Python kernel")


def show_ports(out: Printer, info: InstanceInfo) -> None:
    """Say where the ports that were asked for are on this machine."""
    for port in info.relay:
        if port.name.startswith("tcp"):
            out.line(f"  port {port.inside} is {port.address}:{port.host} here")


def show_console(out: Printer, info: InstanceInfo) -> None:
    """Say how a terminal joins it, where it is a kernel."""
    if info.connection_file is not None:
        out.line((f"  jupyter console --existing {info.connection_file}", "dim"))


def show_network(out: Printer, info: InstanceInfo) -> None:
    """Say that there is no way out, before the first download fails of it; and of a program that is no kernel, and has
    no port to be reached at, how it gets one."""
    if info.network == "none":
        way_in = "" if info.kind == "kernel" or info.relay else "`-p PORT` lets requests in, "
        out.line((f"  network none: {way_in}`--network slirp4netns` lets a program out", "dim"))
    elif info.egress:
        out.line((f"  it may connect to {', '.join(info.egress)} alone", "dim"))


def warn_of_what_cannot_be_saved(app: App, *, gpu: bool, user: str = "") -> None:
    """Say at the start what would be learnt at the first save. `user`: as an InstanceSpec has it."""
    for sentence in _objections(gpu=gpu, user=user):
        app.warn(sentence)


def _objections(*, gpu: bool, user: str) -> Iterator[str]:
    from ijfs.live.checks import privilege
    from ijfs.live.criu import command as criu
    from ijfs.live.errors import CriuMissingError

    try:
        criu.find()
    except CriuMissingError as error:
        yield f"this cannot be saved: {error} (`ijfs doctor` says what to do)"
    if user and not privilege.may_save_other_users():
        yield f"this cannot be saved: it is of the user {user}, and root here lacks CAP_SYS_RESOURCE"
    if gpu and not os.path.exists("/dev/nvidiactl"):
        yield "--gpu, and this machine shows no NVIDIA GPU: the program runs without one"

"""What a user always wants: settings from a file, from IJFS_DEFAULTS, from variables of their own.

An option on the command line wins over everything here; then a setting's own variable (IJFS_REPO), then IJFS_DEFAULTS
(`network=slirp4netns gpu=true`), then the file, then what is built in. Called by the command line, and by kernels that
Jupyter starts. Those settings that deeper layers read from a variable are handed to them as that variable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ijfs_engine.errors import IjfsError

VARIABLE = "IJFS_DEFAULTS"
FILE = "config.toml"


class SettingError(IjfsError):
    """A setting that there is not, or a value that it cannot have; says where it stands."""

    exit_code = 2
    default_hint = "`ijfs config` shows all settings, and where each value comes from"


def _anything(value: str) -> bool:
    return bool(value)


def _one_of(*values: str) -> Callable[[str], bool]:
    return lambda value: value in values


def _matching(pattern: str) -> Callable[[str], bool]:
    return lambda value: re.fullmatch(pattern, value) is not None


TRUE, FALSE = "true", "false"
_truth = _one_of(TRUE, FALSE)


class Setting(NamedTuple):
    """One setting: what it is when nobody says, what it is for, which values it may have; the variable of its own."""

    name: str
    default: str
    about: str
    sound: Callable[[str], bool] = _anything
    variable: str | None = None


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("repository", "", "where snapshots are kept, unless -r says so", variable="IJFS_REPO"),
        Setting("network", "none", "`none` or `slirp4netns`: how programs get out", _one_of("none", "slirp4netns")),
        Setting("gpu", FALSE, "`true`: programs get the machine's GPUs", _truth),
        Setting("share", "", "folders that programs share with this machine: `.`, `/data:.`, or `none`"),
        Setting("share_limit", "", "how much a shared folder may hold, as `4G`", variable="IJFS_SHARE_LIMIT"),
        Setting("base", "", "the base that programs stand on; empty: the place decides"),
        Setting("memory", "", "how much memory a program may take, as `4G`", _matching(r"\d+[KMGTkmgt]|none")),
        Setting("cpus", "", "how many processors a program may keep busy, as `2`", _matching(r"\d+(\.\d+)?|none")),
        Setting("pids", "", "how many processes and threads a program may have", _matching(r"\d+|none")),
        Setting(
            "io", "", "bytes a second a program may read or write on disk, as `100M`", _matching(r"\d+[KMGT]|none")
        ),
        Setting("user", "", "as whom `ijfs run` runs programs: a name, or `sudo`: who called it; empty: root"),
        Setting(
            "auto", "", "`on`, or `on --every 60`: Jupyter's new kernels are saved after cells", _matching("on( .*)?")
        ),
        Setting(
            "port_address", "127.0.0.1", "where `--port` is reached; 0.0.0.0: from everywhere", _matching(r"[\d.]+")
        ),
        Setting("storage", "local", "the remote that saves go to as well, `s3` for the only one; `local`: none"),
        Setting(
            "sign_key", "", "a private key of ssh that signs each snapshot when it is made", variable="IJFS_SIGN_KEY"
        ),
        Setting("allowed_signers", "", "who may sign, for `ijfs verify`", variable="IJFS_ALLOWED_SIGNERS"),
        Setting("detach_keys", "ctrl-p,ctrl-q", "what leaves a program's terminal without ending the program"),
        Setting("save_memory", "", "how much memory saves may take, as `4G`", variable="IJFS_SAVE_MEMORY"),
        Setting(
            "remote_cache",
            "20G",
            "what was read from remotes and stays on the disk",
            _matching(r"\d+[KMGT]"),
            "IJFS_REMOTE_CACHE",
        ),
        Setting("spare_s", "600", "seconds that a spare waits for the next start", _matching(r"\d+"), "IJFS_SPARE_S"),
        Setting("criu", "", "the CRIU to use; empty: the one that is found", variable="IJFS_CRIU"),
        Setting(
            "gpu_huge_pages", "1", "`0`: leave huge pages alone in GPU saves", _one_of("0", "1"), "IJFS_GPU_HUGE_PAGES"
        ),
    )
}


class Value(NamedTuple):
    """What a setting is, and who says so."""

    setting: Setting
    value: str
    source: str


def path() -> Path:
    """The file, whether or not it is there. (platformdirs says the same, and takes 7 ms of each verb.)"""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    home = Path(given) if given.startswith("/") else Path.home() / ".config"
    return home / "ijfs" / FILE


def _is_there(file: Path) -> bool:
    """Whether there is a file that this user may look at: another user's home directory is none of ours."""
    try:
        return file.is_file()
    except OSError:
        return False


def values() -> dict[str, Value]:
    """All settings as they are now. SettingError."""
    found = {name: Value(setting, setting.default, "built in") for name, setting in SETTINGS.items()}
    file = path()
    for name, value in _of_file(file):
        found[name] = Value(SETTINGS[name], value, str(file))
    for name, value in _of_variable(os.environ.get(VARIABLE, "")):
        found[name] = Value(SETTINGS[name], value, VARIABLE)
    for name, setting in SETTINGS.items():
        own = setting.variable and os.environ.get(setting.variable)
        if own and own != _handed_on.get(setting.variable or ""):
            found[name] = Value(setting, own, setting.variable or "")
    return found


def value(name: str) -> str:
    """What a setting is. SettingError."""
    return values()[name].value


def is_true(name: str) -> bool:
    """Whether a setting is `true`. SettingError."""
    return value(name) == TRUE


NO_FOLDERS = "none"
"""What says that no folder is to be shared."""


def folders(value: str) -> list[str]:
    """The folders that a value of `share` names."""
    return [path for path in value.split(":") if path]


_handed_on: dict[str, str] = {}
"""Variables that are set because of a setting, and what they were set to."""


def hand_on() -> None:
    """Set the variables that deeper layers read, where nobody set them and a setting says something. SettingError."""
    if not (os.environ.get(VARIABLE) or _is_there(path())):
        return
    for found in values().values():
        variable = found.setting.variable
        if variable and found.value and found.source != "built in" and not os.environ.get(variable):
            os.environ[variable] = _handed_on[variable] = found.value


def write(name: str, value: str | None) -> Path:
    """Set a setting in the file, or take it out of it (None); the rest of the file stays as it is. SettingError."""
    if value is not None:
        _check(name, value, "")
    elif name not in SETTINGS:
        _check(name, "", "")
    from ijfs_engine import make_directories

    file = path()
    lines = file.read_text().splitlines() if _is_there(file) else []
    kept = [line for line in lines if not re.match(rf"\s*{re.escape(name)}\s*=", line)]
    if value is not None:
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        kept.insert(0, f'{name} = "{quoted}"')
    make_directories(file.parent)
    new = file.with_name(f"{file.name}.new")
    # Root's, in the home directory of who called sudo, it would be closed to its owner, and a link there followed.
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644), "w") as opened:
        opened.writelines(f"{line}\n" for line in kept)
        if os.geteuid() == 0:
            above = file.parent.stat()
            os.fchown(opened.fileno(), above.st_uid, above.st_gid)
    new.rename(file)
    return file


def _of_file(file: Path) -> Iterator[tuple[str, str]]:
    if not _is_there(file):
        return
    import tomllib

    try:
        table = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{file} is no TOML: {error}", hint='one `name = "value"` a line') from error
    for name, given in table.items():
        text = (TRUE if given else FALSE) if isinstance(given, bool) else str(given)
        _check(name, text, str(file))
        yield name, text


def _of_variable(words: str) -> Iterator[tuple[str, str]]:
    """`network=slirp4netns gpu=true`; a value with blanks ends where the next `name=` begins."""
    for found in re.finditer(r"([a-z_]+)=(.*?)(?=[\s,]+[a-z_]+=|[\s,]*$)", words):
        _check(found[1], found[2], VARIABLE)
        yield found[1], found[2]
    if words.strip() and "=" not in words:
        raise SettingError(f"{VARIABLE} is '{words}', and not name=value")


def _check(name: str, value: str, where: str) -> None:
    setting = SETTINGS.get(name)
    if setting is None:
        raise SettingError(f"{_place(where)}there is no setting '{name}'", hint=f"there are {', '.join(SETTINGS)}")
    if value != setting.default and not setting.sound(value):
        raise SettingError(f"{_place(where)}{name} cannot be '{value}': {setting.about}")


def _place(where: str) -> str:
    return f"{where}: " if where else ""

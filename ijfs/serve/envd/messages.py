"""The messages of envd's two services, as JSON has them: `process.Process` and `filesystem.Filesystem`.

Protocol Buffers' JSON form, which is what the clients speak: names in camel case, bytes in base64, defaults left out,
the one member of a `oneof` that is set beside the others' absence.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One message; unknown fields are passed over."""


class Nothing(Message, frozen=True):
    """A message without fields."""


# -- process.Process ------------------------------------------------------------------------------------------------


class PtySize(Message, frozen=True):
    """Of a terminal."""

    cols: int = 0
    rows: int = 0


class Pty(Message, frozen=True):
    """A terminal that is wanted."""

    size: PtySize | None = None


class ProcessConfig(Message, frozen=True):
    """What to run."""

    cmd: str = ""
    args: tuple[str, ...] = ()
    envs: dict[str, str] = {}
    cwd: str | None = None


class StartRequest(Message, frozen=True):
    """Start a command."""

    process: ProcessConfig = ProcessConfig()
    pty: Pty | None = None
    tag: str | None = None
    stdin: bool | None = None


class Selector(Message, frozen=True):
    """Which command: by pid or by tag."""

    pid: int | None = None
    tag: str | None = None


class ConnectRequest(Message, frozen=True):
    """Follow a command that runs."""

    process: Selector = Selector()


class Started(Message, frozen=True):
    """It runs."""

    pid: int = 0


class Data(Message, frozen=True):
    """A piece of output: one of the three."""

    stdout: bytes | None = None
    stderr: bytes | None = None
    pty: bytes | None = None


class Ended(Message, frozen=True):
    """It has ended."""

    exit_code: int = 0
    exited: bool = False
    status: str = ""
    error: str | None = None


class ProcessEvent(Message, frozen=True):
    """One of the four."""

    start: Started | None = None
    data: Data | None = None
    end: Ended | None = None
    keepalive: Nothing | None = None


class ProcessEvents(Message, frozen=True):
    """What the streams of Start and Connect consist of."""

    event: ProcessEvent


class ProcessInfo(Message, frozen=True):
    """A command that runs."""

    config: ProcessConfig
    pid: int
    tag: str | None = None


class ProcessList(Message, frozen=True):
    """All of them."""

    processes: tuple[ProcessInfo, ...] = ()


class Input(Message, frozen=True):
    """For a command's standard input, or its terminal."""

    stdin: bytes | None = None
    pty: bytes | None = None


class SendInputRequest(Message, frozen=True):
    """Input for a command."""

    process: Selector = Selector()
    input: Input = Input()


class InputStart(Message, frozen=True):
    """Which command the stream of input is for."""

    process: Selector = Selector()


class InputData(Message, frozen=True):
    """A piece of it."""

    input: Input = Input()


class StreamInputRequest(Message, frozen=True):
    """One of the three."""

    start: InputStart | None = None
    data: InputData | None = None
    keepalive: Nothing | None = None


class SendSignalRequest(Message, frozen=True):
    """A signal for a command."""

    process: Selector = Selector()
    signal: Literal["SIGNAL_UNSPECIFIED", "SIGNAL_SIGTERM", "SIGNAL_SIGKILL"] = "SIGNAL_UNSPECIFIED"


class CloseStdinRequest(Message, frozen=True):
    """No more input for a command."""

    process: Selector = Selector()


class UpdateRequest(Message, frozen=True):
    """Another size of a command's terminal."""

    process: Selector = Selector()
    pty: Pty | None = None


# -- filesystem.Filesystem --------------------------------------------------------------------------------------------

FileType = Literal["FILE_TYPE_UNSPECIFIED", "FILE_TYPE_FILE", "FILE_TYPE_DIRECTORY", "FILE_TYPE_SYMLINK"]
EventType = Literal[
    "EVENT_TYPE_UNSPECIFIED",
    "EVENT_TYPE_CREATE",
    "EVENT_TYPE_WRITE",
    "EVENT_TYPE_REMOVE",
    "EVENT_TYPE_RENAME",
    "EVENT_TYPE_CHMOD",
]


class EntryInfo(Message, frozen=True):
    """A file. `size` is a string, as 64-bit integers are; `modified_time` as RFC 3339 has it."""

    name: str = ""
    type: FileType = "FILE_TYPE_UNSPECIFIED"
    path: str = ""
    size: str = "0"
    mode: int = 0
    permissions: str = ""
    owner: str = ""
    group: str = ""
    modified_time: str | None = None
    symlink_target: str | None = None
    metadata: dict[str, str] = {}
    is_symlink: bool = False


class PathRequest(Message, frozen=True):
    """Stat, MakeDir, Remove."""

    path: str = ""


class MoveRequest(Message, frozen=True):
    """Rename."""

    source: str = ""
    destination: str = ""


class EntryResponse(Message, frozen=True):
    """Of Stat, MakeDir, Move."""

    entry: EntryInfo


class ListDirRequest(Message, frozen=True):
    """`depth` levels of a directory; 0 means 1."""

    path: str = ""
    depth: int = 0


class ListDirResponse(Message, frozen=True):
    """What is in it."""

    entries: tuple[EntryInfo, ...] = ()


class WatchRequest(Message, frozen=True):
    """Watch a directory, by a stream or by a watcher that is asked."""

    path: str = ""
    recursive: bool = False
    include_entry: bool = False
    allow_network_mounts: bool = False


class FilesystemEvent(Message, frozen=True):
    """Something happened to a file: `name` is below the directory that is watched."""

    name: str = ""
    type: EventType = "EVENT_TYPE_UNSPECIFIED"
    entry: EntryInfo | None = None


class WatchEvents(Message, frozen=True):
    """One of the three."""

    start: Nothing | None = None
    filesystem: FilesystemEvent | None = None
    keepalive: Nothing | None = None


class Watcher(Message, frozen=True):
    """A watcher by its id, answered and asked."""

    watcher_id: str = ""


class WatcherEvents(Message, frozen=True):
    """What happened since it was last asked."""

    events: tuple[FilesystemEvent, ...] = ()

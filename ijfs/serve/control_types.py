"""The bodies of the control plane, as E2B's clients send and read them."""

from __future__ import annotations

import datetime
from typing import Any, Literal

import msgspec

from ijfs.serve.envd.daemon import VERSION

DEFAULT_TIMEOUT_S = 300


class NewSandbox(msgspec.Struct, frozen=True, kw_only=True):
    """Make a sandbox. What is typed `Any` is not here: it is refused where it is given."""

    template: str = msgspec.field(name="templateID")
    timeout: int = DEFAULT_TIMEOUT_S
    auto_pause: bool = msgspec.field(name="autoPause", default=False)
    auto_pause_memory: bool = msgspec.field(name="autoPauseMemory", default=True)
    auto_resume: dict[str, Any] | None = msgspec.field(name="autoResume", default=None)
    metadata: dict[str, str] = {}
    env: dict[str, str] = msgspec.field(name="envVars", default={})
    internet: bool | None = msgspec.field(name="allow_internet_access", default=None)
    network: Any = None
    mcp: Any = None
    iam: Any = None
    volumes: Any = msgspec.field(name="volumeMounts", default=None)


class Timeout(msgspec.Struct, frozen=True):
    """When its time is to be over, in seconds from now."""

    timeout: int


class Connect(msgspec.Struct, frozen=True):
    """Find a sandbox again; resume it where it is paused. `memory` False would boot it anew from its files."""

    timeout: int = DEFAULT_TIMEOUT_S
    memory: bool | None = None


class Pause(msgspec.Struct, frozen=True):
    """Pause a sandbox. `memory` False would keep its files alone."""

    memory: bool = True


class Fork(msgspec.Struct, frozen=True):
    """Make live copies of a sandbox."""

    timeout: int = DEFAULT_TIMEOUT_S
    count: int = 1


class NewSnapshot(msgspec.Struct, frozen=True):
    """Save a sandbox under a name."""

    name: str | None = None
    memory: bool | None = None


class SandboxMade(msgspec.Struct, frozen=True, kw_only=True, rename={"template": "templateID", "id": "sandboxID"}):
    """What is told of a sandbox to who may work in it."""

    template: str
    id: str
    client: str = msgspec.field(name="clientID", default="ijfs")
    version: str = msgspec.field(name="envdVersion", default=VERSION)
    token: str = msgspec.field(name="envdAccessToken")
    traffic_token: str = msgspec.field(name="trafficAccessToken")


class SandboxShown(msgspec.Struct, frozen=True, kw_only=True):
    """One of a list."""

    template: str = msgspec.field(name="templateID")
    id: str = msgspec.field(name="sandboxID")
    client: str = msgspec.field(name="clientID", default="ijfs")
    started: datetime.datetime = msgspec.field(name="startedAt")
    ends: datetime.datetime = msgspec.field(name="endAt")
    cpus: int = msgspec.field(name="cpuCount")
    memory_mb: int = msgspec.field(name="memoryMB")
    disk_mb: int = msgspec.field(name="diskSizeMB")
    state: Literal["running", "paused"]
    version: str = msgspec.field(name="envdVersion", default=VERSION)
    metadata: dict[str, str] = {}


class Lifecycle(msgspec.Struct, frozen=True):
    """What happens when its time is over."""

    resumes: bool = msgspec.field(name="autoResume")
    at_the_end: Literal["kill", "pause"] = msgspec.field(name="onTimeout")


class SandboxDetail(SandboxShown, frozen=True, kw_only=True):
    """One by itself."""

    token: str = msgspec.field(name="envdAccessToken")
    internet: bool = msgspec.field(name="allowInternetAccess")
    lifecycle: Lifecycle


class Metrics(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a sandbox takes just now."""

    timestamp: datetime.datetime
    timestamp_unix: int
    cpu_count: int
    cpu_used_pct: float
    mem_used: int
    mem_total: int
    mem_cache: int = 0
    disk_used: int
    disk_total: int


class SnapshotShown(msgspec.Struct, frozen=True):
    """A snapshot that a client asked for."""

    id: str = msgspec.field(name="snapshotID")
    names: list[str]

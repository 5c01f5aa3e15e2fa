"""How long a dump took, by CRIU's own clock: the stats-dump that it leaves in its work directory.

Called by command.py and checkpoint/freeze.py.
"""

from __future__ import annotations

from pathlib import Path

from ijfs.live.criu.image_format import parse_dump_stats
from ijfs.live.errors import CriuError
from ijfs_engine.errors import CorruptError

_FREEZING_TIME, _FROZEN_TIME = 1, 2  # of DumpStatsEntry, images/stats.proto


def frozen_seconds(work: Path) -> float:
    """How long the last dump kept the program standing. CriuError."""
    return _statistics(work).get(_FROZEN_TIME, 0) / 1e6


def freezing_seconds(work: Path) -> float:
    """How long the last dump took to bring all processes to a stand. CriuError."""
    return _statistics(work).get(_FREEZING_TIME, 0) / 1e6


def _statistics(work: Path) -> dict[int, int]:
    try:
        return parse_dump_stats("stats-dump", (work / "stats-dump").read_bytes())
    except OSError as error:
        raise CriuError(f"CRIU left no statistics: {error.strerror}") from error
    except CorruptError as error:
        raise CriuError(f"CRIU left statistics that cannot be read: {error}") from error

"""The type of a progress callback, for everything in the engine that takes long enough to be watched."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as progress(phase, done, total) from any thread; total is 0 where it is not known. Bytes for data."""

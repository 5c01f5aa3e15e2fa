from collections.abc import Sequence
from typing import Any

def write_files(
    directory: int, files: Sequence[tuple[bytes, Any, int, int, int, int, int]], owners: bool, goal: int = -1
) -> None: ...

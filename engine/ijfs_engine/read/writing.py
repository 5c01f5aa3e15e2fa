"""What is said where something cannot be written onto a disk. Used by export.py and small_files.py."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import Final

from ijfs_engine.errors import CorruptError, StorageError
from ijfs_engine.storage.disk import is_full

_FULL_HINT: Final = "free some space there (where it is the repository's disk, `ijfs gc` may help) and try again"


@contextlib.contextmanager
def writing(shown: Callable[[], str]) -> Iterator[None]:
    """Errors as sentences with the path of what is written."""
    try:
        yield
    except (OverflowError, ValueError) as error:
        raise CorruptError(f"the stored metadata of {shown()} is impossible: {error}") from error
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise CorruptError(f"the stored tree has '{shown()}' twice") from error
        hint = _FULL_HINT if is_full(error) else None
        raise StorageError(f"cannot write {shown()}: {error.strerror}", hint=hint) from error

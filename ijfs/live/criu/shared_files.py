"""Files of folders that a program shares with the host: others may have changed them since it was saved.

Called by mending.py. CRIU refuses a file whose size or mode is not what it was. In a shared folder that is nobody's
fault: a program that goes on in it finds the file as it is now, at the position where it was. So files.img says nothing
of either for those (images/regfile.proto: 8 is the size, 10 the mode, 6 the name). What is gone has been refused before
(checkpoint/shared_folders.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ijfs.live.criu.image_format import FILES_MAGIC, parse_fields, with_nested, with_records
from ijfs.live.sandbox.volumes import is_below

_NAME = "files.img"
_REGULAR, _PATH, _CHECKED = 3, 6, (8, 10)


def unchecked(image: bytes, folders: Sequence[str]) -> bytes:
    """files.img without the size and mode of files below `folders`. CorruptError where it is no such image."""
    if not folders:
        return image

    def changed(regular: bytes) -> bytes:
        fields = list(parse_fields(_NAME, regular, 0, len(regular)))
        path = next((regular[one.begin : one.end] for one in fields if one.number == _PATH and one.nested), b"")
        if not is_below(Path(os.fsdecode(path)), folders):
            return regular
        return b"".join(regular[one.start : one.end] for one in fields if one.number not in _CHECKED)

    return with_records(_NAME, image, FILES_MAGIC, lambda entry: with_nested(_NAME, entry, _REGULAR, changed))

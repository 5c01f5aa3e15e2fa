"""Types of the compiled check of frames; frame_check.pyx has the documentation."""

from typing_extensions import Buffer

def stretch(data: Buffer, most: int) -> int: ...

class FrameCheck:
    def check(self, data: Buffer) -> list[tuple[int, int, int, bytes, bool, bytes]]: ...

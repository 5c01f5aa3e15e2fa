from typing_extensions import Buffer

from .numeric_codec import Packer

def pack(
    tools: Packer, data: Buffer, bounds: Buffer, bases: list[Buffer | None] | None = None, sure: Buffer | None = None
) -> list[tuple[int, memoryview | None]]: ...

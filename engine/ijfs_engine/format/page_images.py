"""What a CRIU image of memory is called, and how long a page is. Who asks for a name loads no parser with it."""

from typing import Final

PAGE: Final = 4096
"""Bytes of a page, in images and in memory. The compiled loops have the same (_native/fingerprint.h)."""


def pages_name(number: int) -> str:
    """The file that has the pages of the pagemaps with this number in their heads."""
    return f"pages-{number}.img"


def is_pages(name: str | bytes) -> bool:
    """Whether an image of this name holds pages of memory."""
    if isinstance(name, bytes):
        return name.startswith(b"pages-") and name.endswith(b".img")
    return name.startswith("pages-") and name.endswith(".img")

"""The key of page fingerprints, made from the repository's secret. Called by ingest; the loop is
_native/native.pyx's."""

from __future__ import annotations

from typing import Final

from blake3 import blake3

from ijfs_engine._native import native

_CONTEXT: Final = b"ijfs 2026-11 page fingerprint key"


def expand_key(secret: bytes) -> bytes:
    """The 8240 key bytes (k1, k2, a, b, c of docs/format.md) of a 32-byte secret, by keyed BLAKE3's extended output."""
    return blake3(_CONTEXT, key=secret).digest(length=native.KEY_BYTES)

"""Slow pure-Python twins of the compiled loops (*.pyx): the plainest definitions, the oracle of their tests.

Nothing at run time calls this module. Where the two disagree, docs/format.md decides which is wrong.
"""

from __future__ import annotations

import math
import struct
from collections import Counter

import zstandard

PAGE = 4096
GEAR_MULTIPLIER = 0x9E3779B97F4A7C15
GEAR_WINDOW = 176
_WORD = (1 << 64) - 1
# x^128 + x^7 + x^2 + x + 1, the polynomial of GCM: irreducible over GF(2).
_POLYNOMIAL = (1 << 128) | 0x87


def words(data: bytes) -> list[int]:
    """`data` as little-endian 64-bit words; a tail of fewer than 8 bytes is left out."""
    return [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data) - 7, 8)]


def clmul(x: int, y: int) -> int:
    """The product of two polynomials over GF(2), bit i of a number being the coefficient of x^i."""
    product = 0
    while y:
        if y & 1:
            product ^= x
        x <<= 1
        y >>= 1
    return product


def reduce128(x: int) -> int:
    """x modulo x^128 + x^7 + x^2 + x + 1."""
    for bit in range(x.bit_length() - 1, 127, -1):
        if x >> bit & 1:
            x ^= _POLYNOMIAL << (bit - 128)
    return x


def clnh(page: bytes, key: bytes) -> int:
    """CLNH of a page: the XOR of (m[2i] ^ k[2i]) * (m[2i+1] ^ k[2i+1]) (Lemire and Kaser 2016)."""
    total = 0
    m, k = words(page), words(key)
    for i in range(0, len(m), 2):
        total ^= clmul(m[i] ^ k[i], m[i + 1] ^ k[i + 1])
    return total


def fingerprint(page: bytes, key: bytes) -> bytes:
    """16 bytes: zeros for a page of zeros, else a*clnh(k1) ^ b*clnh(k2) in GF(2^128), and 1 where that is 0.

    `key` is k1 (4096 bytes), k2 (4096), a (16), b (16), c (16).
    """
    if not any(page):
        return bytes(16)
    a, b = (int.from_bytes(key[i : i + 16], "little") for i in (2 * PAGE, 2 * PAGE + 16))
    h = reduce128(clmul(a, clnh(page, key[:PAGE])) ^ clmul(b, clnh(page, key[PAGE : 2 * PAGE])))
    return (h or 1).to_bytes(16, "little")


def fold_prints(prints: bytes, numbers: list[int], key: bytes) -> tuple[bytes, bytes]:
    """(hints, group fingerprints) of pages with these page numbers: fold_prints with its pieces written out."""
    c = int.from_bytes(key[2 * PAGE + 32 :], "little")
    hints, groups, last = b"", [], -1
    for page, number in enumerate(numbers):
        print_ = int.from_bytes(prints[16 * page : 16 * page + 16], "little")
        hints += (print_ % 65536 or int(print_ != 0)).to_bytes(2, "little")
        if number // 16 != last:
            groups.append(0)
            last = number // 16
        for _ in range(number % 16 + 1):
            print_ = reduce128(clmul(print_, c))
        groups[-1] ^= print_
    return hints, b"".join(group.to_bytes(16, "little") for group in groups)


def gear_cuts(data: bytes, minimum: int, maximum: int, threshold: int) -> list[int]:
    """Ends of the chunks: after the first word, at or behind `minimum`, whose window's gear hash is >= threshold.

    The hash of the window ending behind word j is the sum of w[j-i] * GEAR_MULTIPLIER * 8^i over its 22 words, modulo
    2^64; the sum over all words is the same number, since 8^22 = 2^66.
    """
    cuts = []
    start = 0
    while start < len(data):
        start += _first_cut(data[start : start + maximum], minimum, threshold)
        cuts.append(start)
    return cuts


def _first_cut(data: bytes, minimum: int, threshold: int) -> int:
    for end in range(minimum, len(data) + 1, 8):
        if end >= minimum and len(data) > minimum and _gear(data[max(0, end - GEAR_WINDOW) : end]) >= threshold:
            return end
    return len(data)


def _gear(window: bytes) -> int:
    h = 0
    for word in words(window):
        h = (8 * h + word * GEAR_MULTIPLIER) & _WORD
    return h


def changed_lines(a: bytes, b: bytes) -> bytes:
    """Per page, how many of its 64-byte lines differ."""
    return bytes(
        sum(a[line : line + 64] != b[line : line + 64] for line in range(page, page + PAGE, 64))
        for page in range(0, len(a), PAGE)
    )


def split_planes(data: bytes, width: int, tops: int) -> tuple[bytes, bytes]:
    """(the `tops` last bytes of each word, plane by plane from the last; all other bytes in order)."""
    whole = len(data) // width * width
    planes = b"".join(data[width - 1 - j : whole : width] for j in range(tops))
    rest = bytes(b for i, b in enumerate(data) if i >= whole or i % width < width - tops)
    return planes, rest


def join_planes(planes: bytes, rest: bytes, width: int, tops: int) -> bytes:
    """The inverse of split_planes."""
    words, low = len(planes) // tops, width - tops
    out = bytearray()
    for i in range(words):
        out += rest[i * low : (i + 1) * low]
        out += bytes(planes[(tops - 1 - j) * words + i] for j in range(tops))
    return bytes(out + rest[words * low :])


def runs(kinds: bytes) -> list[tuple[int, int, int]]:
    """Maximal runs of equal bytes as (first, count, kind)."""
    found: list[tuple[int, int, int]] = []
    for i, kind in enumerate(kinds):
        if found and found[-1][2] == kind:
            first, count, _ = found[-1]
            found[-1] = (first, count + 1, kind)
        else:
            found.append((i, 1, kind))
    return found


def pagemap_runs(data: bytes, at: int) -> list[tuple[int, int]]:
    """(first page number, pages) of each pagemap entry from byte `at` on that the file has pages of. ValueError."""
    return [(first, pages) for first, pages, flags in pagemap_entries(data, at) if flags & 4 and pages]


def pagemap_entries(data: bytes, at: int) -> list[tuple[int, int, int]]:
    """(first page number, pages, flags) of each pagemap entry from byte `at` on. ValueError."""
    found = []
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if len(data) - at < 4 or end > len(data):
            raise ValueError("a message is cut short")
        fields = protobuf_numbers(data[at + 4 : end])
        address, count = fields.get(1), fields.get(5, fields.get(2))
        if address is None or count is None or address % PAGE:
            raise ValueError("an entry without an address and a count")
        found.append((address // PAGE, count, fields.get(4, 1 if fields.get(3) else 4)))
        at = end
    return found


def protobuf_numbers(message: bytes) -> dict[int, int]:
    """The varint fields of a protobuf message by number, the last of a repeated one. ValueError."""
    fields = {}
    while message:
        key, message = _varint(message)
        if key & 7 in (0, 2):
            value, message = _varint(message)
        if key & 7 == 0:
            fields[key >> 3] = value
            continue
        length = {1: 8, 2: value if key & 7 == 2 else 0, 5: 4}.get(key & 7)
        if length is None or length > len(message):
            raise ValueError("a field that is none, or is cut short")
        message = message[length:]
    return fields


def _varint(message: bytes) -> tuple[int, bytes]:
    for n in range(1, 11):
        if n <= len(message) and message[n - 1] < 0x80:
            value = sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(message[:n]))
            return value & _WORD, message[n:]
    raise ValueError("a number without an end")


def unpack_payload(codec: int, payload: bytes, plain: int) -> bytes | None:
    """The plain bytes of a payload (codec 0 raw, 1 and 3 zstd, 2 and 4 planes, 5 numbers); None for another size."""
    if codec == 0:
        return payload if len(payload) == plain else None
    if codec in (1, 3):
        return _unzstd(payload, plain)
    if codec == 5:
        return _numbers(payload, plain)
    if codec not in (2, 4) or len(payload) < 8:
        return None
    width, tops, reserved, packed = struct.unpack_from("<BBHI", payload)
    if width not in (2, 4, 8) or not 1 <= tops <= width or reserved or 8 + packed > len(payload):
        return None
    planes, rest = _unzstd(payload[8 : 8 + packed], plain // width * tops), payload[8 + packed :]
    if planes is None or len(planes) + len(rest) != plain:
        return None
    return join_planes(planes, rest, width, tops)


def _numbers(payload: bytes, plain: int) -> bytes | None:
    if len(payload) < 20:
        return None
    width, form, digits, stored, noise, reserved, others, least, packed = struct.unpack_from("<6BHqI", payload)
    decimals, body = form == 2, payload[20:]
    if width not in (4, 8) or form > 2 or reserved or stored > (4 if decimals else width) or noise >> stored:
        return None
    if digits > (15 if decimals else 0) or (decimals and abs(least) > 1 << 52):
        return None
    words, tail, noisy = plain // width, plain % width, noise.bit_count()
    sizes = [packed, noisy * words, 2 * others, width * others, tail]
    if others > words or sum(sizes) != len(body):
        return None
    frame, loud, places, exceptions, rest = _cut(body, sizes)
    quiet = b"" if noisy == stored and not packed else _unzstd(frame, (stored - noisy) * words)
    if quiet is None:
        return None
    columns = [bytes(words)] * 8
    for j in reversed(range(stored)):
        if noise >> j & 1:
            columns[j], loud = loud[:words], loud[words:]
        else:
            columns[j], quiet = quiet[:words], quiet[words:]
    out = bytearray(_words(columns, words, width, form, least, digits) + rest)
    for i, (place,) in enumerate(struct.iter_unpack("<H", places)):
        if place >= words:
            return None
        out[place * width : (place + 1) * width] = exceptions[i * width : (i + 1) * width]
    return bytes(out)


def _words(columns: list[bytes], words: int, width: int, form: int, least: int, digits: int) -> bytes:
    numbers = [sum(columns[j][i] << 8 * j for j in range(width if form < 2 else 4)) for i in range(words)]
    if form == 2:
        # An i32, as there are no decimals with the highest bit set.
        signed = [n - (n >> 31 << 32) for n in numbers]
        return b"".join(struct.pack("<d" if width == 8 else "<f", (n + least) / 10**digits) for n in signed)
    out = b""
    for number in numbers:
        least += (number >> 1) ^ -(number & 1)
        out += ((least if form == 1 else number) % (1 << 8 * width)).to_bytes(width, "little")
    return out


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    parts = []
    for size in sizes:
        parts.append(data[:size])
        data = data[size:]
    return parts


def _unzstd(packed: bytes, plain: int) -> bytes | None:
    try:
        if plain == 0 or zstandard.frame_content_size(packed) != plain:
            return None
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=plain, allow_extra_data=False)
    except zstandard.ZstdError:
        return None


def leaf_bytes(extents: list[tuple[bytes | None, int, int]], inside: int, size: int) -> bytes:
    """`size` bytes from `inside` of a leaf: of (plain bytes of a chunk or None for zeros, offset in them, length)."""
    whole = b"".join(
        bytes(length) if plain is None else plain[offset : offset + length] for plain, offset, length in extents
    )
    return whole[inside : inside + size]


def float_shape(data: bytes, samples: int = 512, noise_bits: float = 6.9) -> tuple[int, int] | None:
    """(width, tops) of words of 2, 4 or 8 bytes whose `tops` most significant bytes, and no others, are no noise."""
    quiet = [bits <= noise_bits for bits in byte_entropies(data, samples)]
    for width in (2, 4, 8):
        for tops in range(1, width):
            if quiet == ([False] * (width - tops) + [True] * tops) * (8 // width):
                return width, tops
    return None


def byte_entropies(data: bytes, samples: int) -> list[float]:
    """Bits of entropy of the bytes at each position modulo 8, over about `samples` words spread evenly."""
    words = [data[i : i + 8] for i in range(0, len(data) - 7, 8)]
    words = words[:: (len(words) // samples) | 1]
    columns = [Counter(word[j] for word in words) for j in range(8)]
    return [-sum(c / len(words) * math.log2(c / len(words)) for c in column.values()) for column in columns]


Piece = tuple[bytes | None, int, int]
"""A chunk's id (None: zeros), offset, length."""


def assembled(pieces: list[Piece]) -> list[Piece]:
    """Pieces one behind the other; what continues the one before is one with it."""
    found: list[Piece] = []
    for ident, offset, length in pieces:
        if found and found[-1][0] == ident and (ident is None or sum(found[-1][1:]) == offset):
            found[-1] = (ident, found[-1][1], found[-1][2] + length)
        elif length:
            found.append((ident, offset if ident else 0, length))
    return found


def span(pieces: list[Piece], inside: int, size: int) -> list[Piece]:
    """`size` bytes from `inside` of what these pieces make."""
    found = []
    for ident, offset, length in pieces:
        low, high = max(inside, 0), min(inside + size, length)
        if low < high:
            found.append((ident, offset + low if ident else 0, high - low))
        inside -= length
    return found


def fresh_pages(
    kinds: bytes, own: list[int], theirs: list[int], matches: list[tuple[int, int, int]]
) -> list[tuple[int, int, bool]]:
    """(number, the parent's page or -1, whether the hints agree) of each page of kind 2, fresh."""
    found = []
    for i, kind in enumerate(kinds):
        under = [page + i - at for at, page, count in matches if at <= i < at + count and theirs[i]]
        if kind == 2:
            found.append((i, under[0] if under else -1, bool(under) and own[i] == theirs[i]))
    return found


def long_runs(theirs: list[int], likely: bytes, minimum: int) -> list[tuple[int, int]]:
    """(first, count) of unlikely pages over pages of the parent that follow one another, at least `minimum` of them."""
    found: list[tuple[int, int]] = []
    for i, page in enumerate(theirs):
        if page < 0 or likely[i]:
            continue
        if found and sum(found[-1]) == i and theirs[i - 1] == page - 1:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((i, 1))
    return [run for run in found if run[1] >= minimum]

# distutils: libraries = zstd
"""From a payload back to plain bytes: the read side of the codecs of docs/format.md, each checked against every lie.

Called by bulk.pyx for many chunks at once and by format/chunk_codec.py for one. reference.py is the slow twin; numbers.h,
bytes.h and blake3.h have the loops.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

from .payload cimport MAX_PLAIN, NUMBER_HEAD, NUMBERS, PLANE_HEAD, PLANES, RAW, XOR_PLANES, XOR_ZSTD, ZSTD

cdef extern from "blake3.h" nogil:
    int ijfs_blake3_best()
    void ijfs_blake3(int lanes, const uint8_t *key, const uint8_t *data, size_t n, uint8_t *room, uint8_t *out)

cdef extern from "bytes.h" nogil:
    void ijfs_join_planes(const uint8_t *planes, const uint8_t *rest, size_t n, int width, int tops, uint8_t *data)

cdef extern from "numbers.h" nogil:
    enum:
        IJFS_DECIMALS
        IJFS_MAX_DIGITS
    void ijfs_join_numbers(const uint8_t *const *planes, size_t words, int width, int form, int64_t least, int digits,
                           uint8_t *out)

cdef extern from "zstd.h" nogil:
    ZSTD_DCtx *ZSTD_createDCtx()
    size_t ZSTD_freeDCtx(ZSTD_DCtx *context)
    size_t ZSTD_decompressDCtx(ZSTD_DCtx *context, void *out, size_t room, const void *packed, size_t size)
    size_t ZSTD_findFrameCompressedSize(const void *packed, size_t size)
    unsigned long long ZSTD_getFrameContentSize(const void *packed, size_t size)

cdef enum:
    HASH_ROOM = MAX_PLAIN // 1024 * 32 + 64
    ID = 32
    SUM = 12
# Whole numbers up to here are exact as doubles.
cdef int64_t MOST_LEAST = 1 << 52
# A plane that is not stored.
cdef uint8_t *NO_PLANE = <uint8_t *>calloc(MAX_PLAIN // 4, 1)
if NO_PLANE == NULL:
    raise MemoryError
cdef int LANES = ijfs_blake3_best()


cdef class Unpacker:
    """What one unpacking thread needs: a context of zstd, room for a read, planes and hashes. Not for two threads at once.

    Kept by its thread: buffers of megabytes cost as much to map and to zero as to read into.
    """

    def __cinit__(self):
        self.context = ZSTD_createDCtx()
        self.packed = <uint8_t *>malloc(READ_ROOM)
        self.spare = <uint8_t *>malloc(MAX_PLAIN)
        self.hashes = <uint8_t *>malloc(HASH_ROOM)
        if self.context == NULL or self.packed == NULL or self.spare == NULL or self.hashes == NULL:
            raise MemoryError

    def __dealloc__(self):
        ZSTD_freeDCtx(self.context)
        free(self.packed)
        free(self.spare)
        free(self.hashes)


cdef bint unzstd(ZSTD_DCtx *context, const uint8_t *packed, size_t size, uint8_t *out, size_t plain) noexcept nogil:
    """Exactly one zstd frame that says it holds `plain` bytes, and does."""
    if plain == 0 or ZSTD_getFrameContentSize(packed, size) != plain or ZSTD_findFrameCompressedSize(packed, size) != size:
        return False
    return ZSTD_decompressDCtx(context, out, plain, packed, size) == plain


cdef bint unplanes(Unpacker tools, const uint8_t *payload, size_t size, uint8_t *out, size_t plain) noexcept nogil:
    cdef uint32_t packed = 0
    cdef size_t top_bytes
    if size < PLANE_HEAD:
        return False
    cdef int width = payload[0], tops = payload[1]
    memcpy(&packed, payload + 4, 4)
    if (width != 2 and width != 4 and width != 8) or tops < 1 or tops > width or payload[2] or payload[3]:
        return False
    top_bytes = plain // width * tops
    if packed > size - PLANE_HEAD or size - PLANE_HEAD - packed != plain - top_bytes:
        return False
    if not unzstd(tools.context, payload + PLANE_HEAD, packed, tools.spare, top_bytes):
        return False
    ijfs_join_planes(tools.spare, payload + PLANE_HEAD + packed, plain, width, tops, out)
    return True


cdef bint unnumbers(Unpacker tools, const uint8_t *payload, size_t size, uint8_t *out, size_t plain) noexcept nogil:
    cdef uint16_t others = 0, at = 0
    cdef int64_t least = 0
    cdef uint32_t packed = 0
    cdef const uint8_t *planes[8]
    cdef const uint8_t *quiet = tools.spare
    cdef const uint8_t *noisy
    cdef size_t words, left, i
    cdef int j, n_quiet = 0
    if size < NUMBER_HEAD:
        return False
    cdef int width = payload[0], form = payload[1], digits = payload[2], stored = payload[3], noise = payload[4]
    memcpy(&others, payload + 6, 2)
    memcpy(&least, payload + 8, 8)
    memcpy(&packed, payload + 16, 4)
    if (width != 4 and width != 8) or form > IJFS_DECIMALS or payload[5]:
        return False
    if stored > (4 if form == IJFS_DECIMALS else width) or noise >> stored:
        return False
    if digits > (IJFS_MAX_DIGITS if form == IJFS_DECIMALS else 0):
        return False
    if form == IJFS_DECIMALS and not -MOST_LEAST <= least <= MOST_LEAST:
        return False
    words = plain // width
    for j in range(stored):
        n_quiet += not noise >> j & 1
    left = size - NUMBER_HEAD
    if others > words or packed > left or left - packed != (stored - n_quiet) * words + others * (2 + width) + plain % width:
        return False
    payload += NUMBER_HEAD
    if n_quiet == 0 and packed:
        return False
    if n_quiet and not unzstd(tools.context, payload, packed, tools.spare, n_quiet * words):
        return False
    noisy = payload + packed
    for j in range(8):
        planes[j] = NO_PLANE
    for j in range(stored - 1, -1, -1):
        if noise >> j & 1:
            planes[j] = noisy
            noisy += words
        else:
            planes[j] = quiet
            quiet += words
    ijfs_join_numbers(planes, words, width, form, least, digits, out)
    for i in range(others):
        memcpy(&at, noisy + 2 * i, 2)
        if at >= words:
            return False
        memcpy(out + at * width, noisy + 2 * others + i * width, width)
    memcpy(out + words * width, noisy + others * (2 + width), plain % width)
    return True


cdef bint unpack(Unpacker tools, int codec, const uint8_t *payload, size_t size, uint8_t *out, size_t plain) noexcept nogil:
    """The bytes of a payload (of a difference: the difference) into `out`."""
    if codec == RAW:
        if size != plain:
            return False
        memcpy(out, payload, plain)
        return True
    if codec == ZSTD or codec == XOR_ZSTD:
        return unzstd(tools.context, payload, size, out, plain)
    if codec == PLANES or codec == XOR_PLANES:
        return unplanes(tools, payload, size, out, plain)
    if codec == NUMBERS:
        return unnumbers(tools, payload, size, out, plain)
    return False


cdef bint is_chunk(Unpacker tools, const uint8_t *key, const uint8_t *plain, size_t size, const uint8_t *ident) noexcept nogil:
    """Whether these, at most MAX_PLAIN, are the bytes that an id stands for; `key` keys ids of an encrypted repository."""
    cdef uint8_t own[ID]
    ijfs_blake3(LANES, key, plain, size, tools.hashes, own)
    return memcmp(own, ident, ID) == 0


cdef bint has_sum(Unpacker tools, const uint8_t *payload, size_t size, const uint8_t *expected) noexcept nogil:
    """Whether a payload, at most MAX_PLAIN, has the sum of its frame: the beginning of the same hash."""
    cdef uint8_t own[ID]
    ijfs_blake3(LANES, NULL, payload, size, tools.hashes, own)
    return memcmp(own, expected, SUM) == 0


def hash_widths():
    """How many inputs at once BLAKE3 can take on this processor."""
    return [lanes for lanes in (4, 8, 16) if lanes <= LANES]


def chunk_ids(const uint8_t[::1] data, const uint64_t[::1] bounds, int lanes=0, bytes key=None):
    """The ids of chunks of `data`, as a list; `bounds` are (start, end) of each, flat. ValueError if they do not fit.

    For the tests, which compare each width with the blake3 package. What is stored is named by the package, so that a
    fault here can refuse good chunks but never name new ones wrongly.
    """
    cdef size_t count = bounds.shape[0] // 2, i
    cdef const uint8_t *at = &data[0] if data.shape[0] else NO_PLANE
    cdef uint8_t *room
    cdef const uint8_t *key_at = <const uint8_t *>PyBytes_AS_STRING(key) if key is not None else NULL
    if key is not None and len(key) != ID:
        raise ValueError("a key has 32 bytes")
    for i in range(count):
        if bounds[2 * i] > bounds[2 * i + 1] or bounds[2 * i + 1] > <uint64_t>data.shape[0]:
            raise ValueError(f"no chunk: bytes {bounds[2 * i]} to {bounds[2 * i + 1]} of {data.shape[0]}")
        if bounds[2 * i + 1] - bounds[2 * i] > MAX_PLAIN:
            raise ValueError(f"no chunk has {bounds[2 * i + 1] - bounds[2 * i]} bytes")
    if bounds.shape[0] % 2 or lanes not in (0, *hash_widths()):
        raise ValueError(f"a chunk without an end, or not {hash_widths()} inputs at once")
    out = PyBytes_FromStringAndSize(NULL, ID * count)
    cdef uint8_t *ids = <uint8_t *>PyBytes_AS_STRING(out)
    with nogil:
        room = <uint8_t *>malloc(HASH_ROOM)
        if room != NULL:
            for i in range(count):
                ijfs_blake3(lanes or LANES, key_at, at + bounds[2 * i], bounds[2 * i + 1] - bounds[2 * i], room, ids + ID * i)
        free(room)
    if room == NULL:
        raise MemoryError
    return [out[ID * i : ID * (i + 1)] for i in range(count)]


def unpack_payload(Unpacker tools not None, int codec, const uint8_t[::1] payload, size_t plain):
    """The bytes of one payload, of a difference the difference; None if it is not one of `plain` bytes."""
    if plain > MAX_PLAIN:
        return None
    out = PyBytes_FromStringAndSize(NULL, plain)
    cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(out)
    cdef bint good
    cdef const uint8_t *payload_at = &payload[0] if payload.shape[0] else NULL
    with nogil:
        good = payload_at != NULL and unpack(tools, codec, payload_at, payload.shape[0], at, plain)
    return out if good else None

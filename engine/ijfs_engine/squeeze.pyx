# distutils: libraries = zstd
"""Finding the smallest stored form of chunks, many in one call and without the GIL. Called by codec.py.

docs/format.md ("Codecs") has the bytes of each form; reference.py the slow twin.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

cdef extern from "bytes.h" nogil:
    void ijfs_make_logs()
    void ijfs_entropies(const uint8_t *data, const uint8_t *other, size_t n, size_t samples, double *bits)
    void ijfs_xor_into(uint8_t *out, const uint8_t *b, size_t n)
    void ijfs_split_planes(const uint8_t *data, size_t n, int width, int tops, uint8_t *planes, uint8_t *rest)

cdef extern from "zstd.h" nogil:
    ctypedef struct ZSTD_CCtx:
        pass
    ZSTD_CCtx *ZSTD_createCCtx()
    size_t ZSTD_freeCCtx(ZSTD_CCtx *context)
    size_t ZSTD_compressCCtx(ZSTD_CCtx *context, void *out, size_t room, const void *data, size_t size, int level)
    size_t ZSTD_compressBound(size_t size)
    unsigned ZSTD_isError(size_t code)

# frames.py has these numbers, too.
cdef enum:
    RAW = 0
    ZSTD = 1
    PLANES = 2
    XOR_ZSTD = 3
    XOR_PLANES = 4
    PLANE_HEAD = 8
    MAX_PLAIN = 256 * 1024
    # zstd-3 saves under 1.5% of a kernel image over zstd-1.
    LEVEL = 1
    TOO_SMALL = 64
    # 512 words put the entropy of a noisy byte 0.4 bits too low; 1024 took 4% of the time of a save of fresh weights.
    SAMPLES = 512
# A byte position is noise above this entropy in the sample (noise itself shows 7.6), and not worth packing.
cdef double NOISE_BITS = 6.9

ijfs_make_logs()

cdef struct Shape:
    int width
    int tops


cdef class Packer:
    """What one packing thread needs: a context of zstd, room for planes, a difference and its form. Not for two at once."""

    cdef ZSTD_CCtx *context
    cdef uint8_t *planes
    cdef uint8_t *difference
    cdef uint8_t *packed
    cdef size_t bound

    def __cinit__(self):
        self.context = ZSTD_createCCtx()
        self.bound = ZSTD_compressBound(MAX_PLAIN) + PLANE_HEAD
        self.planes = <uint8_t *>malloc(MAX_PLAIN)
        self.difference = <uint8_t *>malloc(MAX_PLAIN)
        self.packed = <uint8_t *>malloc(self.bound)
        if self.context == NULL or self.planes == NULL or self.difference == NULL or self.packed == NULL:
            raise MemoryError

    def __dealloc__(self):
        ZSTD_freeCCtx(self.context)
        free(self.planes)
        free(self.difference)
        free(self.packed)


cdef Shape shape_of(const uint8_t *data, size_t n) noexcept nogil:
    """What an array of numbers the bytes look like; width 0 if like none (`float_shape` says how)."""
    cdef double bits[8]
    cdef bint quiet[8]
    cdef Shape found
    cdef int width = 1, j, noisy = 0, tops
    cdef bint fits
    found.width = found.tops = 0
    if n < 8:
        return found
    ijfs_entropies(data, NULL, n, SAMPLES, bits)
    for j in range(8):
        quiet[j] = bits[j] <= NOISE_BITS
        noisy += not quiet[j]
    if noisy == 0 or noisy == 8:
        return found
    while width < 8:
        width *= 2
        tops = 0
        while tops < width and quiet[width - 1 - tops]:
            tops += 1
        fits = 0 < tops < width
        for j in range(8):
            fits = fits and quiet[j] == (j % width >= width - tops)
        if fits:
            found.width, found.tops = width, tops
            return found
    return found


cdef size_t zstd(Packer tools, const uint8_t *data, size_t n, uint8_t *out, size_t room) noexcept nogil:
    """Bytes written, 0 if there is no room for them."""
    cdef size_t got = ZSTD_compressCCtx(tools.context, out, room, data, n, LEVEL)
    return 0 if ZSTD_isError(got) else got


cdef size_t pack_planes(Packer tools, const uint8_t *data, size_t n, Shape shape, uint8_t *out, size_t room) noexcept nogil:
    """u8 width, u8 tops, u16 zero, u32 length of the zstd frame of the planes, that frame, the rest as it is."""
    cdef size_t top_bytes = n // shape.width * shape.tops, rest = n - top_bytes, got
    cdef uint32_t length
    if room < PLANE_HEAD + rest:
        return 0
    # The rest goes to the end first, since the room for the frame is what is left.
    ijfs_split_planes(data, n, shape.width, shape.tops, tools.planes, out + room - rest)
    got = zstd(tools, tools.planes, top_bytes, out + PLANE_HEAD, room - rest - PLANE_HEAD)
    if got == 0:
        return 0
    length = got
    memset(out, 0, 4)
    out[0], out[1] = shape.width, shape.tops
    memcpy(out + 4, &length, 4)
    move(out + PLANE_HEAD + got, out + room - rest, rest)
    return PLANE_HEAD + got + rest


cdef extern from "string.h" nogil:
    void *move "memmove"(void *out, const void *data, size_t n)


cdef size_t smallest(Packer tools, const uint8_t *data, size_t n, uint8_t *out, size_t room, int *codec) noexcept nogil:
    """The smallest form into `out`, bytes written; 0, RAW where none of less than `room` is known."""
    cdef Shape shape
    cdef size_t got = 0
    codec[0] = RAW
    if n < TOO_SMALL:
        return 0
    shape = shape_of(data, n)
    if shape.width:
        got = pack_planes(tools, data, n, shape, out, room)
        codec[0] = PLANES
    if got == 0:
        got = zstd(tools, data, n, out, room)
        codec[0] = ZSTD
    if got == 0:
        codec[0] = RAW
    return got


def float_shape(const uint8_t[::1] data):
    """(width, tops) of words of `width` bytes whose `tops` most significant ones are worth packing, the others noise.

    None for data that looks like no array of floating-point numbers. Looks at the entropy of the byte positions modulo 8:
    sign and exponent stand out against a noisy mantissa, and in the difference of two such arrays the top of the mantissa
    does, too. Where the quiet bytes are not on top, or no byte is noise, zstd alone does better.
    """
    cdef Shape shape
    if data.shape[0] == 0:
        return None
    with nogil:
        shape = shape_of(&data[0], data.shape[0])
    return (shape.width, shape.tops) if shape.width else None


def pack(Packer tools not None, const uint8_t[::1] data, const uint64_t[::1] bounds, uint8_t[::1] out):
    """The smallest forms of chunks of `data`: (codec, begin, end), its payload being out[begin:end].

    `bounds` are (start, end) of each chunk in `data`, flat; `out` has room for all of them as they are. A chunk that
    nothing makes smaller has codec RAW and no payload here. ValueError for bounds or sizes that do not fit.
    """
    cdef size_t count = bounds.shape[0] // 2, i, start, end, at = 0, n = data.shape[0], total = 0
    cdef uint64_t *got
    cdef int *codecs
    for i in range(count):
        start, end = bounds[2 * i], bounds[2 * i + 1]
        if start > end or end > n or end - start > MAX_PLAIN:
            raise ValueError(f"no chunk: bytes {start} to {end} of {n}")
        total += end - start
    if bounds.shape[0] % 2 or total > <size_t>out.shape[0]:
        raise ValueError(f"pack: {total} bytes to {out.shape[0]}")
    if count == 0:
        return []
    got = <uint64_t *>malloc(count * sizeof(uint64_t))
    codecs = <int *>malloc(count * sizeof(int))
    try:
        if got == NULL or codecs == NULL:
            raise MemoryError
        with nogil:
            for i in range(count):
                start, end = bounds[2 * i], bounds[2 * i + 1]
                # One byte less than the chunk has: what is not smaller is stored raw.
                got[i] = smallest(tools, &data[0] + start, end - start, &out[0] + at, end - start - 1, &codecs[i])
                at += got[i]
        forms, at = [], 0
        for i in range(count):
            forms.append((codecs[i], at, at + got[i]))
            at += got[i]
        return forms
    finally:
        free(got)
        free(codecs)


def pack_difference(Packer tools not None, const uint8_t[::1] plain, const uint8_t[::1] base):
    """(codec, payload) of plain ^ base, of which it is not said that it is smaller. ValueError if they differ in length."""
    cdef size_t n = plain.shape[0], got = 0
    cdef Shape shape
    if <size_t>base.shape[0] != n or not 0 < n <= MAX_PLAIN:
        raise ValueError(f"pack_difference: {n} and {base.shape[0]} bytes")
    with nogil:
        memcpy(tools.difference, &plain[0], n)
        ijfs_xor_into(tools.difference, &base[0], n)
        shape = shape_of(tools.difference, n)
        if shape.width:
            got = pack_planes(tools, tools.difference, n, shape, tools.packed, tools.bound)
        if got == 0:
            shape.width = 0
            got = zstd(tools, tools.difference, n, tools.packed, tools.bound)
    if got == 0:
        raise MemoryError
    return XOR_PLANES if shape.width else XOR_ZSTD, PyBytes_FromStringAndSize(<const char *>tools.packed, got)

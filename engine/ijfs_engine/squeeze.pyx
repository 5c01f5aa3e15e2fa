"""Finding the smallest stored form of chunks. Called by codec.py, for many chunks at once.

Compression itself is zstandard's, through Python: its zstd is newer than that of most systems and packs pages a fifth
faster (1.5.7 against 1.5.4), which is more than a call without the GIL for all of them would gain. docs/format.md
("Codecs") has the bytes of each form; reference.py the slow twin of what is decided here.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

cdef extern from "Python.h":
    enum:
        PyBUF_READ

cdef extern from "bytes.h" nogil:
    void ijfs_make_logs()
    void ijfs_entropies(const uint8_t *data, const uint8_t *other, size_t n, size_t samples, double *bits)
    void ijfs_xor_into(uint8_t *out, const uint8_t *b, size_t n)
    void ijfs_split_planes(const uint8_t *data, size_t n, int width, int tops, uint8_t *planes, uint8_t *rest)

# frames.py has these numbers, too.
cdef enum:
    RAW = 0
    ZSTD = 1
    PLANES = 2
    XOR_ZSTD = 3
    XOR_PLANES = 4
    PLANE_HEAD = 8
    MAX_PLAIN = 256 * 1024
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
    """What one packing thread needs: `compress`, from a buffer to bytes, and room. Not for two threads at once."""

    cdef object compress
    cdef uint8_t *planes
    cdef uint8_t *rest
    cdef uint8_t *difference

    def __cinit__(self, compress):
        self.compress = compress
        self.planes = <uint8_t *>malloc(MAX_PLAIN)
        self.rest = <uint8_t *>malloc(MAX_PLAIN)
        self.difference = <uint8_t *>malloc(MAX_PLAIN)
        if self.planes == NULL or self.rest == NULL or self.difference == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.planes)
        free(self.rest)
        free(self.difference)


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


cdef bytes pack_planes(Packer tools, const uint8_t *data, size_t n, Shape shape):
    """u8 width, u8 tops, u16 zero, u32 length of the zstd frame of the planes, that frame, the rest as it is."""
    cdef size_t top_bytes = n // shape.width * shape.tops, rest = n - top_bytes
    with nogil:
        ijfs_split_planes(data, n, shape.width, shape.tops, tools.planes, tools.rest)
    cdef bytes packed = tools.compress(PyMemoryView_FromMemory(<char *>tools.planes, top_bytes, PyBUF_READ))
    cdef uint32_t length = len(packed)
    cdef bytes payload = PyBytes_FromStringAndSize(NULL, PLANE_HEAD + length + rest)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(payload)
    memset(out, 0, 4)
    out[0], out[1] = shape.width, shape.tops
    memcpy(out + 4, &length, 4)
    memcpy(out + PLANE_HEAD, PyBytes_AS_STRING(packed), length)
    memcpy(out + PLANE_HEAD + length, tools.rest, rest)
    return payload


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


def pack(Packer tools not None, const uint8_t[::1] data, const uint64_t[::1] bounds):
    """The smallest forms of chunks of `data`: (codec, payload), (RAW, None) for one that nothing makes smaller.

    `bounds` are (start, end) of each chunk in `data`, flat. ValueError if they do not fit.
    """
    cdef size_t count = bounds.shape[0] // 2, i, n
    cdef uint64_t start, end
    cdef const uint8_t *at
    cdef Shape shape
    if bounds.shape[0] % 2:
        raise ValueError("a chunk without an end")
    forms = []
    for i in range(count):
        start, end = bounds[2 * i], bounds[2 * i + 1]
        if start > end or end > <uint64_t>data.shape[0] or end - start > MAX_PLAIN:
            raise ValueError(f"no chunk: bytes {start} to {end} of {data.shape[0]}")
        at, n = &data[0] + start, end - start
        codec, payload = RAW, None
        if n >= TOO_SMALL:
            with nogil:
                shape = shape_of(at, n)
            if shape.width:
                codec, payload = PLANES, pack_planes(tools, at, n, shape)
            if payload is None or <size_t>len(payload) >= n:
                codec, payload = ZSTD, tools.compress(PyMemoryView_FromMemory(<char *>at, n, PyBUF_READ))
            if <size_t>len(payload) >= n:
                codec, payload = RAW, None
        forms.append((codec, payload))
    return forms


def pack_difference(Packer tools not None, const uint8_t[::1] plain, const uint8_t[::1] base):
    """(codec, payload) of plain ^ base, of which it is not said that it is smaller. ValueError if they differ in length."""
    cdef size_t n = plain.shape[0]
    cdef Shape shape
    if <size_t>base.shape[0] != n or not 0 < n <= MAX_PLAIN:
        raise ValueError(f"pack_difference: {n} and {base.shape[0]} bytes")
    with nogil:
        memcpy(tools.difference, &plain[0], n)
        ijfs_xor_into(tools.difference, &base[0], n)
        shape = shape_of(tools.difference, n)
    if shape.width:
        return XOR_PLANES, pack_planes(tools, tools.difference, n, shape)
    return XOR_ZSTD, tools.compress(PyMemoryView_FromMemory(<char *>tools.difference, n, PyBUF_READ))

"""Finding the smallest stored form of chunks, a batch in one call without the GIL. Called by format/chunk_codec.py.

Compression is libzstd's, with contexts that are kept: version 1.5.4 then packs memory as fast as zstandard's 1.5.7 does
through Python (355 to 360 MB/s; planes 364 to 306), and both cores stay busy. docs/format.md ("Codecs") has the bytes of
each form; reference.py the slow twin of what is decided here.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from .payload cimport MAX_PLAIN, RAW, XOR_PLANES, XOR_ZSTD, ZSTD
from .numeric_codec cimport Packer, Shape, floats_in, pack_bytes, pack_planes, pack_words

cdef extern from "Python.h":
    enum:
        PyBUF_READ

cdef extern from "bytes.h" nogil:
    void ijfs_xor_into(uint8_t *out, const uint8_t *b, size_t n)

cdef enum:
    TOO_SMALL = 64

# A chunk that its base explains this well needs no other try.
cdef size_t PLAIN_WIN = 8
# A chain costs reads later: it has to save a tenth.
cdef double CHAIN_GAIN = 0.9


cdef size_t pack_plainly(Packer tools, const uint8_t *data, size_t n, uint8_t *out, int *codec) noexcept nogil:
    """The smallest form of a chunk that needs no other; 0 where nothing makes it smaller."""
    cdef size_t size
    if n < TOO_SMALL:
        return 0
    size = pack_words(tools, data, n, out, n - 1, codec)
    if size == 0:
        codec[0] = ZSTD
        size = pack_bytes(tools, data, n, out, n - 1)
    return size


cdef size_t pack_difference(Packer tools, const uint8_t *data, const uint8_t *base, size_t n, uint8_t *out, int *codec) noexcept nogil:
    """data ^ base; 0 where that is no smaller than the chunk."""
    cdef Shape shape
    memcpy(tools.difference, data, n)
    ijfs_xor_into(tools.difference, base, n)
    shape = floats_in(tools.difference, n)
    if shape.width:
        codec[0] = XOR_PLANES
        return pack_planes(tools, tools.difference, n, shape, out, n - 1)
    codec[0] = XOR_ZSTD
    return pack_bytes(tools, tools.difference, n, out, n - 1)


cdef size_t pack_one(Packer tools, const uint8_t *data, const uint8_t *base, bint sure, size_t n, uint8_t *out, int *codec) noexcept nogil:
    """Bytes of the smallest form in `out`, which has room for n; 0: the chunk as it is."""
    cdef size_t size = 0, plainly
    cdef int other = 0
    if base != NULL and n:
        size = pack_difference(tools, data, base, n, out, codec)
        if size and (sure or size * PLAIN_WIN <= n):
            return size
    plainly = pack_plainly(tools, data, n, tools.other if size else out, &other)
    if size and size < CHAIN_GAIN * (plainly if plainly else n):
        return size
    if size and plainly:
        memcpy(out, tools.other, plainly)
    codec[0] = other
    return plainly


cdef class Bases:
    """The buffers that chunks may be differences to, held while they are packed; NULL for none."""

    cdef Py_buffer *views
    cdef size_t held
    cdef const uint8_t **at

    def __cinit__(self, list bases not None, const uint64_t[::1] bounds):
        cdef size_t count = bounds.shape[0] // 2, i
        if len(bases) != <Py_ssize_t>count:
            raise ValueError(f"{len(bases)} bases for {count} chunks")
        self.views = <Py_buffer *>malloc((count + 1) * sizeof(Py_buffer))
        self.at = <const uint8_t **>malloc((count + 1) * sizeof(uint8_t *))
        if self.views == NULL or self.at == NULL:
            raise MemoryError
        for i, base in enumerate(bases):
            self.at[i] = NULL
            if base is None:
                continue
            PyObject_GetBuffer(base, &self.views[self.held], PyBUF_SIMPLE)
            self.held += 1
            if <uint64_t>self.views[self.held - 1].len != bounds[2 * i + 1] - bounds[2 * i]:
                raise ValueError("no difference: a chunk and its base differ in length")
            self.at[i] = <const uint8_t *>self.views[self.held - 1].buf

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.held):
            PyBuffer_Release(&self.views[i])
        free(self.views)
        free(self.at)


def pack(Packer tools not None, const uint8_t[::1] data, const uint64_t[::1] bounds, list bases=None, const uint8_t[::1] sure=None):
    """The smallest forms of chunks of `data`: (codec, payload), (RAW, None) for one that nothing makes smaller.

    `bounds` are (start, end) of each chunk in `data`, flat. `bases` has for each what it may be stored as a difference to, as
    long as the chunk, or None; where `sure` is not 0 nothing else is tried that makes it smaller. Payloads stay until the next
    call with the same `tools`. ValueError for what does not fit.
    """
    cdef size_t count = bounds.shape[0] // 2, i, total = 0, at = 0
    cdef uint64_t start, end
    cdef int codec
    if bounds.shape[0] % 2:
        raise ValueError("a chunk without an end")
    for i in range(count):
        start, end = bounds[2 * i], bounds[2 * i + 1]
        if start > end or end > <uint64_t>data.shape[0] or end - start > MAX_PLAIN:
            raise ValueError(f"no chunk: bytes {start} to {end} of {data.shape[0]}")
        total += end - start
    cdef Bases under = Bases([None] * count if bases is None else bases, bounds)
    if sure is not None and <size_t>sure.shape[0] != count:
        raise ValueError(f"{sure.shape[0]} marks for {count} chunks")
    if total == 0:
        return [(RAW, None)] * count
    tools.make_room(total)
    sizes, codecs = bytearray(8 * count), bytearray(count)
    cdef uint64_t[::1] sizes_at = memoryview(sizes).cast("Q")
    cdef uint8_t[::1] codecs_at = codecs
    with nogil:
        for i in range(count):
            start, end = bounds[2 * i], bounds[2 * i + 1]
            codec = RAW
            sizes_at[i] = pack_one(
                tools, &data[0] + start, under.at[i], sure is not None and sure[i], end - start, tools.out + at, &codec)
            codecs_at[i] = codec if sizes_at[i] else RAW
            at += sizes_at[i]
    whole = PyMemoryView_FromMemory(<char *>tools.out, at, PyBUF_READ)
    forms, at = [], 0
    for i in range(count):
        forms.append((codecs_at[i], whole[at : at + sizes_at[i]] if sizes_at[i] else None))
        at += sizes_at[i]
    return forms

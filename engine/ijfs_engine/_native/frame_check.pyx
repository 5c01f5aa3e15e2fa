# distutils: libraries = zstd
"""Whole stretches of a pack checked in one call, without the GIL: for fsck, frames one by one being 45 us of Python each.

Only what is surely right is said to be: any other frame is looked at again by format/frames.py and
format/chunk_codec.py, which say what is wrong with it. Called by maintenance/pack_check.py; the twin in the tests is
format/frames.py. docs/format.md draws the frame.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from .payload cimport MAX_PLAIN, RAW
from .unpack cimport Unpacker, has_sum, is_chunk, unpack

cdef enum:
    HEADER = 64
    KIND_AT = 4
    CODEC_AT = 5
    DEPTH_AT = 6
    BASES_AT = 7
    STORED_AT = 8
    PLAIN_AT = 12
    CRC_AT = 16
    ID_AT = 20
    SUM_AT = 52
    SUM = 12
    ID = 32
    BASE = 40
    ALIGN = 8
    CHUNK = 1
    MAX_OBJECT = 1 << 30

cdef uint32_t TABLE[256]


cdef void make_table() noexcept:
    """Of the CRC-32 that zlib computes."""
    cdef uint32_t number, crc
    cdef int bit
    for number in range(256):
        crc = number
        for bit in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
        TABLE[number] = crc


make_table()


cdef inline uint32_t crc_of(uint32_t crc, const uint8_t* data, size_t size) noexcept nogil:
    cdef size_t at
    for at in range(size):
        crc = crc >> 8 ^ TABLE[(crc ^ data[at]) & 0xFF]
    return crc


cdef inline uint32_t word_at(const uint8_t* data, size_t at) noexcept nogil:
    cdef uint32_t word
    memcpy(&word, data + at, 4)
    return word


cdef inline uint64_t bases_end(const uint8_t* frame) noexcept nogil:
    return HEADER + <uint64_t>BASE * frame[BASES_AT]


cdef uint64_t span_of(const uint8_t* frame, uint64_t size) noexcept nogil:
    """Bytes of the frame that begins here, without padding; 0 where none does, or none that is all here."""
    cdef uint8_t blank[4]
    cdef uint32_t crc, stored, plain
    if size < HEADER or memcmp(frame, b"\xabIJf", 4) != 0 or size < bases_end(frame):
        return 0
    memcpy(blank, b"\0\0\0\0", 4)
    crc = crc_of(crc_of(0xFFFFFFFF, frame, CRC_AT), blank, 4)
    crc = ~crc_of(crc, frame + CRC_AT + 4, bases_end(frame) - CRC_AT - 4)
    stored, plain = word_at(frame, STORED_AT), word_at(frame, PLAIN_AT)
    if crc != word_at(frame, CRC_AT) or stored > MAX_OBJECT:
        return 0
    if plain > <uint32_t>(MAX_PLAIN if frame[KIND_AT] == CHUNK else MAX_OBJECT):
        return 0
    return bases_end(frame) + stored if bases_end(frame) + stored <= size else 0


def stretch(const uint8_t[::1] data not None, Py_ssize_t most):
    """How far whole frames with sound headers follow one another from the start of `data`, at most so many.

    The last one's padding is counted, also where `data` ends before it does.
    """
    cdef uint64_t at = 0, size = data.shape[0], span
    cdef Py_ssize_t count
    with nogil:
        for count in range(most):
            span = span_of(&data[0] + at, size - at) if at < size else 0
            if span == 0:
                break
            at += (span + ALIGN - 1) & ~<uint64_t>(ALIGN - 1)
    return at


cdef bytes row_of(const uint8_t* frame, uint32_t span):
    """What the index should say of a frame, behind its place."""
    cdef char row[10]
    memcpy(row, &span, 4)
    memcpy(row + 4, frame + PLAIN_AT, 4)
    row[8] = <char>(frame[CODEC_AT] if frame[KIND_AT] == CHUNK else frame[KIND_AT])
    row[9] = <char>frame[DEPTH_AT]
    return PyBytes_FromStringAndSize(row, 10)


cdef class FrameCheck:
    """What one checking thread needs. Not for two threads at once."""

    cdef Unpacker tools
    cdef uint8_t* plain
    cdef bint sealed

    def __cinit__(self, bint sealed=False):
        """`sealed`: of an encrypted repository, where nothing is surely right before it is opened."""
        self.sealed = sealed
        self.tools = Unpacker()
        self.plain = <uint8_t*>malloc(MAX_PLAIN)
        if self.plain == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.plain)

    def check(self, const uint8_t[::1] data not None):
        """[(offset, span, kind, id, whether it is surely right, row)] of the frames of a `stretch`.

        Surely right is a chunk without bases whose checksums hold and whose plain bytes have its id. The row is what the
        index should say of the frame behind its place: span, plain size, tag, depth (format/place.py).
        """
        cdef uint64_t at = 0, size = data.shape[0], span
        cdef const uint8_t* frame
        cdef bint right
        cdef list found = []
        while at < size:
            frame = &data[0] + at
            with nogil:
                span = span_of(frame, size - at)
                right = span != 0 and not self.sealed and self.is_right(frame)
            if span == 0:
                break
            ident = PyBytes_FromStringAndSize(<const char*>frame + ID_AT, ID)
            found.append((at, span, frame[KIND_AT], ident, right, row_of(frame, <uint32_t>span)))
            at += (span + ALIGN - 1) & ~<uint64_t>(ALIGN - 1)
        return found

    cdef bint is_right(self, const uint8_t* frame) noexcept nogil:
        cdef const uint8_t* payload = frame + HEADER
        cdef uint32_t stored = word_at(frame, STORED_AT), plain = word_at(frame, PLAIN_AT)
        if frame[KIND_AT] != CHUNK or frame[BASES_AT] != 0 or frame[DEPTH_AT] != 0 or stored > MAX_PLAIN:
            return False
        if frame[CODEC_AT] == RAW:
            # The sum is the beginning of the same hash as the id.
            return (stored == plain and memcmp(frame + SUM_AT, frame + ID_AT, SUM) == 0
                    and is_chunk(self.tools, NULL, payload, stored, frame + ID_AT))
        return (has_sum(self.tools, payload, stored, frame + SUM_AT)
                and unpack(self.tools, frame[CODEC_AT], payload, stored, self.plain, plain)
                and is_chunk(self.tools, NULL, self.plain, plain, frame + ID_AT))

"""For compress.pyx, which chooses among the forms of a chunk."""

from libc.stdint cimport uint8_t, uint16_t

cdef extern from "zstd.h" nogil:
    ctypedef struct ZSTD_CCtx:
        pass

cdef struct Shape:
    int width
    int tops

cdef class Packer:
    cdef ZSTD_CCtx *bytes_context
    cdef ZSTD_CCtx *planes_context
    cdef uint8_t *planes
    cdef uint8_t *rest
    cdef uint8_t *difference
    cdef uint8_t *numbers
    cdef uint8_t *other     # a second form of a chunk
    cdef uint16_t *where
    cdef uint8_t *out       # the payloads of a batch
    cdef size_t room

    cdef int make_room(self, size_t size) except -1

cdef size_t pack_bytes(Packer tools, const uint8_t *data, size_t n, uint8_t *out, size_t room) noexcept nogil
cdef Shape floats_in(const uint8_t *data, size_t n) noexcept nogil
cdef size_t pack_planes(Packer tools, const uint8_t *data, size_t n, Shape shape, uint8_t *out, size_t room) noexcept nogil
cdef size_t pack_words(Packer tools, const uint8_t *data, size_t n, uint8_t *out, size_t room, int *codec) noexcept nogil

"""For bulk.pyx and frame_check.pyx, which unpack many payloads without the GIL."""

from libc.stdint cimport uint8_t

cdef extern from "zstd.h" nogil:
    ctypedef struct ZSTD_DCtx:
        pass

cdef enum:
    # One read of packs: what it unpacks to is checked and copied while it is in the cache of the core.
    READ_ROOM = 1 << 20

cdef class Unpacker:
    cdef ZSTD_DCtx *context
    cdef uint8_t *packed
    cdef uint8_t *spare
    cdef uint8_t *hashes

cdef bint unpack(Unpacker tools, int codec, const uint8_t *payload, size_t size, uint8_t *out, size_t plain) noexcept nogil
cdef bint is_chunk(Unpacker tools, const uint8_t *key, const uint8_t *plain, size_t size, const uint8_t *ident) noexcept nogil
cdef bint has_sum(Unpacker tools, const uint8_t *payload, size_t size, const uint8_t *expected) noexcept nogil

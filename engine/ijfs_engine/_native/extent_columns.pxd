from libc.stdint cimport uint32_t, uint64_t

cdef class Columns:
    cdef readonly bytes ids
    cdef readonly bytes rows    # of the index, one for each id, where somebody has looked them up
    cdef readonly uint64_t size
    cdef size_t n
    cdef uint32_t *index
    cdef uint32_t *offset
    cdef uint32_t *length
    cdef uint32_t *start

    cdef size_t find(self, uint64_t inside) noexcept nogil

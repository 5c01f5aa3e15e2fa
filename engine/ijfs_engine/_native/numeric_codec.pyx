# distutils: libraries = zstd
"""Chunks as arrays of words: floating-point numbers in planes, whole and decimal numbers, and the contexts of zstd.

Called by compress.pyx, without the GIL, for each chunk. docs/format.md ("Codecs") has the bytes of each form; reference.py
the slow twin of what is decided here.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from .payload cimport MAX_PLAIN, NUMBER_HEAD, NUMBERS, PLANE_HEAD, PLANES

cdef extern from "zstd.h" nogil:
    ZSTD_CCtx *ZSTD_createCCtx()
    size_t ZSTD_freeCCtx(ZSTD_CCtx *context)
    size_t ZSTD_CCtx_setParameter(ZSTD_CCtx *context, int parameter, int value)
    size_t ZSTD_compress2(ZSTD_CCtx *context, void *out, size_t room, const void *data, size_t size)
    unsigned ZSTD_isError(size_t code)
    enum:
        ZSTD_c_compressionLevel
        ZSTD_c_windowLog
        ZSTD_c_hashLog
        ZSTD_c_minMatch
        ZSTD_c_targetLength
        ZSTD_c_strategy
        ZSTD_fast
        # ZSTD_c_literalCompressionMode of its unstable interface, where 1 has always meant Huffman coding.
        LITERALS "ZSTD_c_experimentalParam5"

cdef extern from "bytes.h" nogil:
    bint ijfs_is_zero(const uint8_t *p, size_t n)
    void ijfs_make_logs()
    void ijfs_entropies(const uint8_t *data, const uint8_t *other, size_t n, size_t samples, double *bits)
    void ijfs_split_planes(const uint8_t *data, size_t n, int width, int tops, uint8_t *planes, uint8_t *rest)

cdef extern from "numbers.h" nogil:
    enum:
        IJFS_INTEGERS
        IJFS_DIFFERENCES
        IJFS_DECIMALS
    int ijfs_decimal_digits(const uint8_t *data, size_t words, int width, double *low)
    long ijfs_split_decimals(const uint8_t *data, size_t words, int width, int digits, double low, size_t most, uint32_t *u,
                             uint16_t *where, int64_t *least)
    void ijfs_split_differences(const uint8_t *data, size_t words, uint8_t *out)
    void ijfs_difference_entropies(const uint8_t *data, size_t n, size_t samples, double *bits)

cdef enum:
    # Of the words of an array of decimal numbers so many may be none: an eighth of the smallest gain seen.
    MOST_OTHERS = 16
    # What is packed both ways to see whether numbers win: a page.
    SAMPLE = 4096
    # 512 words put the entropy of a noisy byte 0.4 bits too low; 1024 took 4% of the time of a save of fresh weights.
    SAMPLES = 512
# A byte position is noise above this entropy in the sample (noise itself shows 7.6), and not worth packing.
cdef double NOISE_BITS = 6.9
# The same for the planes of numbers, of which a wrong one costs the others nothing.
cdef double PLANE_NOISE_BITS = 7.2
# Words with more bits than this, byte by byte, are never fewer bytes as planes of integers than zstd makes them.
cdef double INTEGER_BITS = 32
# Planes have to win by this much in the sample, as zstd finds more in a whole chunk than in a page.
cdef double SAMPLE_GAIN = 0.92
# How much less entropy, byte by byte, decimals and differences need to be taken for what they look like.
cdef double DECIMAL_GAIN = 0.9
cdef double DIFFERENCE_GAIN = 0.9

ijfs_make_logs()

# A chunk as whole numbers: of words of `width` bytes, `size` bytes each in `Packer.numbers`.
cdef struct Numbers:
    int width
    int form
    int digits
    int size
    long others
    int64_t least


# zstd-3 saves under 1.5% of a kernel image over zstd-1. Matches of 5 bytes where level 1 asks for 6: 1.7% smaller for 1%
# of the speed (of 4: 3.4% for 2 to 15%). A table of 8 KiB in place of 64 KiB stays in the first cache and is cleared for
# each chunk: 11 to 18% faster for 2.6% more.
cdef int[6] FOR_BYTES = [ZSTD_c_compressionLevel, 1, ZSTD_c_hashLog, 11, ZSTD_c_minMatch, 5]
# In planes short matches are chance: looking for them cost a third of the time and 5% of the size. Nor are there many long
# ones: looking at every ninth byte where none was found packs 460 MB/s in place of 260 and unpacks a sixth faster, for 1.8%
# more (numbers 480 in place of 390, 4.8%). Huffman coding of literals, which zstd leaves out then, is most of the gain.
cdef int[14] FOR_PLANES = [
    ZSTD_c_compressionLevel, 1, ZSTD_c_strategy, ZSTD_fast, ZSTD_c_windowLog, 18, ZSTD_c_hashLog, 11, ZSTD_c_minMatch, 7,
    ZSTD_c_targetLength, 8, LITERALS, 1,
]


cdef ZSTD_CCtx *context(const int *parameters, int count):
    """A context with these (parameter, value); one that this zstd does not know is left out."""
    cdef ZSTD_CCtx *made = ZSTD_createCCtx()
    cdef int i
    if made != NULL:
        for i in range(count // 2):
            ZSTD_CCtx_setParameter(made, parameters[2 * i], parameters[2 * i + 1])
    return made


cdef class Packer:
    """What one packing thread needs: contexts of zstd, and room. Not for two threads at once."""

    def __cinit__(self):
        self.bytes_context = context(FOR_BYTES, 6)
        self.planes_context = context(FOR_PLANES, 14)
        self.planes = <uint8_t *>malloc(MAX_PLAIN)
        self.rest = <uint8_t *>malloc(MAX_PLAIN)
        self.difference = <uint8_t *>malloc(MAX_PLAIN)
        self.numbers = <uint8_t *>malloc(MAX_PLAIN)
        self.other = <uint8_t *>malloc(MAX_PLAIN)
        self.where = <uint16_t *>malloc(MAX_PLAIN // 4 // MOST_OTHERS * sizeof(uint16_t))
        if not (self.bytes_context and self.planes_context and self.planes and self.rest and self.difference
                and self.numbers and self.other and self.where):
            raise MemoryError

    def __dealloc__(self):
        ZSTD_freeCCtx(self.bytes_context)
        ZSTD_freeCCtx(self.planes_context)
        free(self.planes)
        free(self.rest)
        free(self.difference)
        free(self.numbers)
        free(self.other)
        free(self.where)
        free(self.out)

    cdef int make_room(self, size_t size) except -1:
        cdef uint8_t *grown
        if size > self.room:
            grown = <uint8_t *>realloc(self.out, size)
            if grown == NULL:
                raise MemoryError
            self.out, self.room = grown, size
        return 0


cdef size_t zstd(ZSTD_CCtx *context, const uint8_t *data, size_t n, uint8_t *out, size_t room) noexcept nogil:
    """Bytes of one zstd frame in `out`; 0 if it does not fit."""
    cdef size_t size = ZSTD_compress2(context, out, room, data, n)
    return 0 if ZSTD_isError(size) else size


cdef size_t pack_bytes(Packer tools, const uint8_t *data, size_t n, uint8_t *out, size_t room) noexcept nogil:
    """The payload of codec 1."""
    return zstd(tools.bytes_context, data, n, out, room)

cdef Shape shape_of(const double *bits) noexcept nogil:
    """What an array of numbers has bytes of these entropies; width 0: none has (`float_shape` says how)."""
    cdef bint quiet[8]
    cdef Shape found
    cdef int width = 1, j, noisy = 0, tops
    cdef bint fits
    found.width = found.tops = 0
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

cdef Shape floats_in(const uint8_t *data, size_t n) noexcept nogil:
    """What the bytes are as an array of floating-point numbers, by a sample of them; width 0: no such array."""
    cdef double bits[8]
    cdef Shape none
    if n < 8:
        none.width = none.tops = 0
        return none
    ijfs_entropies(data, NULL, n, SAMPLES, bits)
    return shape_of(bits)


cdef size_t pack_planes(Packer tools, const uint8_t *data, size_t n, Shape shape, uint8_t *out, size_t room) noexcept nogil:
    """u8 width, u8 tops, u16 zero, u32 length of the zstd frame of the planes, that frame, the rest as it is.

    As below: how many bytes, 0 if they do not fit into `room`.
    """
    cdef size_t top_bytes = n // shape.width * shape.tops, rest = n - top_bytes, packed
    cdef uint32_t length
    if room < PLANE_HEAD + rest:
        return 0
    ijfs_split_planes(data, n, shape.width, shape.tops, tools.planes, tools.rest)
    packed = zstd(tools.planes_context, tools.planes, top_bytes, out + PLANE_HEAD, room - PLANE_HEAD - rest)
    if packed == 0:
        return 0
    length = packed
    memset(out, 0, 4)
    out[0], out[1] = shape.width, shape.tops
    memcpy(out + 4, &length, 4)
    memcpy(out + PLANE_HEAD + packed, tools.rest, rest)
    return PLANE_HEAD + packed + rest

cdef bint find_decimals(Packer tools, const uint8_t *data, size_t n, const double *bits, Numbers *found) noexcept nogil:
    """Whether the bytes are an array of decimal numbers; then those are in tools.numbers, as u32."""
    cdef double low, before = 0, after = 0
    cdef double u_bits[8]
    cdef size_t words
    cdef int j
    found.width, found.form, found.size = 8, IJFS_DECIMALS, 4
    found.digits = ijfs_decimal_digits(data, n // 8, 8, &low)
    if found.digits < 0:
        found.width = 4
        found.digits = ijfs_decimal_digits(data, n // 4, 4, &low)
    if found.digits < 0:
        return False
    words = n // found.width
    found.others = ijfs_split_decimals(data, words, found.width, found.digits, low, words // MOST_OTHERS,
                                       <uint32_t *>tools.numbers, tools.where, &found.least)
    if found.others < 0:
        return False
    ijfs_entropies(tools.numbers, NULL, 4 * words, SAMPLES, u_bits)
    for j in range(8):
        before += bits[j] / 8
        after += u_bits[j] / 2 / found.width
    return after < before * DECIMAL_GAIN


cdef size_t pack_numbers(Packer tools, const uint8_t *data, size_t n, Numbers shape, uint8_t *out, size_t room) noexcept nogil:
    """The payload of codec 5 for the numbers in tools.numbers; docs/format.md has its bytes."""
    cdef size_t words = n // shape.width, quiet = 0, noisy = 0, tail = n % shape.width, packed = 0, others, apart, i
    cdef int j, stored = 0, noise = 0
    cdef double bits[8]
    cdef double plane_bits
    cdef uint8_t *plane
    cdef uint32_t length
    cdef uint16_t count = shape.others
    ijfs_split_planes(tools.numbers, shape.size * words, shape.size, shape.size, tools.planes, tools.rest)
    ijfs_entropies(tools.numbers, NULL, shape.size * words, SAMPLES, bits)
    for j in range(shape.size - 1, -1, -1):
        plane = tools.planes + (shape.size - 1 - j) * words
        if stored == 0 and ijfs_is_zero(plane, words):
            continue
        stored = max(stored, j + 1)
        plane_bits = bits[j] if shape.size == 8 else (bits[j] + bits[j + 4]) / 2
        if plane_bits > PLANE_NOISE_BITS:
            noise |= 1 << j
            noisy += words
        else:
            memcpy(tools.rest + quiet, plane, words)
            quiet += words
    others = shape.others
    apart = noisy + others * (2 + shape.width) + tail
    if room < NUMBER_HEAD + apart:
        return 0
    if quiet:
        packed = zstd(tools.planes_context, tools.rest, quiet, out + NUMBER_HEAD, room - NUMBER_HEAD - apart)
        if packed == 0:
            return 0
    length = packed
    memset(out, 0, NUMBER_HEAD)
    out[0], out[1], out[2], out[3], out[4] = shape.width, shape.form, shape.digits, stored, noise
    memcpy(out + 6, &count, 2)
    memcpy(out + 8, &shape.least, 8)
    memcpy(out + 16, &length, 4)
    out += NUMBER_HEAD + packed
    for j in range(stored - 1, -1, -1):
        if noise >> j & 1:
            memcpy(out, tools.planes + (shape.size - 1 - j) * words, words)
            out += words
    memcpy(out, tools.where, 2 * others)
    out += 2 * others
    for i in range(others):
        memcpy(out + i * shape.width, data + tools.where[i] * shape.width, shape.width)
    memcpy(out + others * shape.width, data + words * shape.width, tail)
    return NUMBER_HEAD + packed + apart


cdef size_t pack_integers(Packer tools, const uint8_t *data, size_t n, bint differences, uint8_t *out, size_t room) noexcept nogil:
    """The payload of codec 5 for 8-byte words as they are, or for how each differs from the one before."""
    cdef Numbers shape
    shape.width, shape.form, shape.digits, shape.size = 8, IJFS_INTEGERS, 0, 8
    shape.others, shape.least = 0, 0
    if differences:
        shape.form = IJFS_DIFFERENCES
        memcpy(&shape.least, data, 8)
        ijfs_split_differences(data, n // 8, tools.numbers)
    else:
        memcpy(tools.numbers, data, n // 8 * 8)
    return pack_numbers(tools, data, n, shape, out, room)


cdef bint integers_win(Packer tools, const uint8_t *data, size_t n, bint differences, uint8_t *spare) noexcept nogil:
    """Whether a page from the middle packs better as planes of integers than as it is."""
    cdef size_t size = min(n // 8 * 8, <size_t>SAMPLE), at = (n - size) // 2 // 8 * 8
    cdef size_t plainly = zstd(tools.bytes_context, data + at, size, spare, size)
    cdef size_t planes = pack_integers(tools, data + at, size, differences, spare, size)
    return planes and planes < SAMPLE_GAIN * (plainly if plainly else size)


cdef size_t pack_words(Packer tools, const uint8_t *data, size_t n, uint8_t *out, size_t room, int *codec) noexcept nogil:
    """One of the forms that take the bytes for an array of numbers; 0 where none of them is promising."""
    cdef double bits[8]
    cdef double difference_bits[8]
    cdef double whole = 0, differences = 0
    cdef Numbers decimals
    cdef Shape shape
    cdef int j
    ijfs_entropies(data, NULL, n, SAMPLES, bits)
    codec[0] = NUMBERS
    if find_decimals(tools, data, n, bits, &decimals):
        return pack_numbers(tools, data, n, decimals, out, room)
    ijfs_difference_entropies(data, n, SAMPLES, difference_bits)
    for j in range(8):
        whole += bits[j]
        differences += difference_bits[j]
    shape = shape_of(bits)
    if not (shape.width and differences > whole * DIFFERENCE_GAIN):
        if min(whole, differences) < INTEGER_BITS and integers_win(tools, data, n, differences < whole, out):
            return pack_integers(tools, data, n, differences < whole, out, room)
    codec[0] = PLANES
    return pack_planes(tools, data, n, shape, out, room) if shape.width else 0

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
        shape = floats_in(&data[0], data.shape[0])
    return (shape.width, shape.tops) if shape.width else None

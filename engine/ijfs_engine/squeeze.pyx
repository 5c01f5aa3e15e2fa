"""Finding the smallest stored form of chunks. Called by codec.py, for many chunks at once.

Compression itself is zstandard's, through Python: its zstd is newer than that of most systems and packs pages a fifth
faster (1.5.7 against 1.5.4), which is more than a call without the GIL for all of them would gain. docs/format.md
("Codecs") has the bytes of each form; reference.py the slow twin of what is decided here.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

cdef extern from "Python.h":
    enum:
        PyBUF_READ

cdef extern from "bytes.h" nogil:
    void ijfs_make_logs()
    void ijfs_entropies(const uint8_t *data, const uint8_t *other, size_t n, size_t samples, double *bits)
    void ijfs_xor_into(uint8_t *out, const uint8_t *b, size_t n)
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

# frames.py has these numbers, too.
cdef enum:
    RAW = 0
    ZSTD = 1
    PLANES = 2
    XOR_ZSTD = 3
    XOR_PLANES = 4
    NUMBERS = 5
    PLANE_HEAD = 8
    NUMBER_HEAD = 20
    # Of the words of an array of decimal numbers so many may be none: an eighth of the smallest gain seen.
    MOST_OTHERS = 16
    # What is packed both ways to see whether numbers win: a page.
    SAMPLE = 4096
    MAX_PLAIN = 256 * 1024
    TOO_SMALL = 64
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

cdef struct Shape:
    int width
    int tops

# A chunk as whole numbers: of words of `width` bytes, `size` bytes each in `Packer.numbers`.
cdef struct Numbers:
    int width
    int form
    int digits
    int size
    long others
    int64_t least


cdef class Packer:
    """What one packing thread needs: how to compress a buffer to bytes, and planes, and room. Not for two threads at once."""

    cdef object compress
    cdef object compress_planes
    cdef uint8_t *planes
    cdef uint8_t *rest
    cdef uint8_t *difference
    cdef uint8_t *numbers
    cdef uint16_t *where

    def __cinit__(self, compress, compress_planes):
        self.compress, self.compress_planes = compress, compress_planes
        self.planes = <uint8_t *>malloc(MAX_PLAIN)
        self.rest = <uint8_t *>malloc(MAX_PLAIN)
        self.difference = <uint8_t *>malloc(MAX_PLAIN)
        self.numbers = <uint8_t *>malloc(MAX_PLAIN)
        self.where = <uint16_t *>malloc(MAX_PLAIN // 4 // MOST_OTHERS * sizeof(uint16_t))
        if not (self.planes and self.rest and self.difference and self.numbers and self.where):
            raise MemoryError

    def __dealloc__(self):
        free(self.planes)
        free(self.rest)
        free(self.difference)
        free(self.numbers)
        free(self.where)


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


cdef bytes pack_planes(Packer tools, const uint8_t *data, size_t n, Shape shape):
    """u8 width, u8 tops, u16 zero, u32 length of the zstd frame of the planes, that frame, the rest as it is."""
    cdef size_t top_bytes = n // shape.width * shape.tops, rest = n - top_bytes
    with nogil:
        ijfs_split_planes(data, n, shape.width, shape.tops, tools.planes, tools.rest)
    cdef bytes packed = tools.compress_planes(PyMemoryView_FromMemory(<char *>tools.planes, top_bytes, PyBUF_READ))
    cdef uint32_t length = len(packed)
    cdef bytes payload = PyBytes_FromStringAndSize(NULL, PLANE_HEAD + length + rest)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(payload)
    memset(out, 0, 4)
    out[0], out[1] = shape.width, shape.tops
    memcpy(out + 4, &length, 4)
    memcpy(out + PLANE_HEAD, PyBytes_AS_STRING(packed), length)
    memcpy(out + PLANE_HEAD + length, tools.rest, rest)
    return payload


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


cdef bytes pack_numbers(Packer tools, const uint8_t *data, size_t n, Numbers shape):
    """The payload of codec 5 for the numbers in tools.numbers; docs/format.md has its bytes."""
    cdef size_t words = n // shape.width, quiet = 0, noisy = 0, tail = n % shape.width, i, most
    cdef int j, stored = 0, noise = 0
    cdef double bits[8]
    cdef double plane_bits
    cdef uint8_t *plane
    cdef uint8_t *out
    with nogil:
        ijfs_split_planes(tools.numbers, shape.size * words, shape.size, shape.size, tools.planes, tools.rest)
        ijfs_entropies(tools.numbers, NULL, shape.size * words, SAMPLES, bits)
        for j in range(shape.size - 1, -1, -1):
            plane = tools.planes + (shape.size - 1 - j) * words
            if stored == 0 and is_zero(plane, words):
                continue
            stored = max(stored, j + 1)
            plane_bits = bits[j] if shape.size == 8 else (bits[j] + bits[j + 4]) / 2
            if plane_bits > PLANE_NOISE_BITS:
                noise |= 1 << j
                noisy += words
            else:
                memcpy(tools.rest + quiet, plane, words)
                quiet += words
    cdef bytes packed = b""
    if quiet:
        packed = tools.compress_planes(PyMemoryView_FromMemory(<char *>tools.rest, quiet, PyBUF_READ))
    cdef uint32_t length = len(packed)
    cdef uint16_t others = shape.others
    cdef bytes payload = PyBytes_FromStringAndSize(
        NULL, NUMBER_HEAD + length + noisy + others * (2 + shape.width) + tail)
    out = <uint8_t *>PyBytes_AS_STRING(payload)
    memset(out, 0, NUMBER_HEAD)
    out[0], out[1], out[2], out[3], out[4] = shape.width, shape.form, shape.digits, stored, noise
    memcpy(out + 6, &others, 2)
    memcpy(out + 8, &shape.least, 8)
    memcpy(out + 16, &length, 4)
    memcpy(out + NUMBER_HEAD, PyBytes_AS_STRING(packed), length)
    out += NUMBER_HEAD + length
    for j in range(stored - 1, -1, -1):
        if noise >> j & 1:
            memcpy(out, tools.planes + (shape.size - 1 - j) * words, words)
            out += words
    memcpy(out, tools.where, 2 * others)
    out += 2 * others
    for i in range(others):
        memcpy(out + i * shape.width, data + tools.where[i] * shape.width, shape.width)
    memcpy(out + others * shape.width, data + words * shape.width, tail)
    return payload


cdef bint is_zero(const uint8_t *data, size_t n) noexcept nogil:
    return n == 0 or (data[0] == 0 and memcmp(data, data + 1, n - 1) == 0)


cdef bytes pack_integers(Packer tools, const uint8_t *data, size_t n, bint differences):
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
    return pack_numbers(tools, data, n, shape)


cdef bint integers_win(Packer tools, const uint8_t *data, size_t n, bint differences):
    """Whether a page from the middle packs better as planes of integers than as it is."""
    cdef size_t size = min(n // 8 * 8, <size_t>SAMPLE), at = (n - size) // 2 // 8 * 8
    plainly = tools.compress(PyMemoryView_FromMemory(<char *>data + at, size, PyBUF_READ))
    return len(pack_integers(tools, data + at, size, differences)) < SAMPLE_GAIN * len(plainly)


cdef tuple pack_words(Packer tools, const uint8_t *data, size_t n):
    """One of the forms that take the bytes for an array of numbers, None where none of them is promising."""
    cdef double bits[8]
    cdef double difference_bits[8]
    cdef double whole = 0, differences = 0
    cdef Numbers decimals
    cdef Shape shape
    cdef bint found
    cdef int j
    with nogil:
        ijfs_entropies(data, NULL, n, SAMPLES, bits)
        found = find_decimals(tools, data, n, bits, &decimals)
    if found:
        return NUMBERS, pack_numbers(tools, data, n, decimals)
    with nogil:
        ijfs_difference_entropies(data, n, SAMPLES, difference_bits)
        for j in range(8):
            whole += bits[j]
            differences += difference_bits[j]
        shape = shape_of(bits)
    if shape.width and differences > whole * DIFFERENCE_GAIN:
        return PLANES, pack_planes(tools, data, n, shape)
    if min(whole, differences) < INTEGER_BITS and integers_win(tools, data, n, differences < whole):
        return NUMBERS, pack_integers(tools, data, n, differences < whole)
    if shape.width:
        return PLANES, pack_planes(tools, data, n, shape)
    return None


def float_shape(const uint8_t[::1] data):
    """(width, tops) of words of `width` bytes whose `tops` most significant ones are worth packing, the others noise.

    None for data that looks like no array of floating-point numbers. Looks at the entropy of the byte positions modulo 8:
    sign and exponent stand out against a noisy mantissa, and in the difference of two such arrays the top of the mantissa
    does, too. Where the quiet bytes are not on top, or no byte is noise, zstd alone does better.
    """
    cdef double bits[8]
    cdef Shape shape
    if data.shape[0] < 8:
        return None
    with nogil:
        ijfs_entropies(&data[0], NULL, data.shape[0], SAMPLES, bits)
        shape = shape_of(bits)
    return (shape.width, shape.tops) if shape.width else None


def pack(Packer tools not None, const uint8_t[::1] data, const uint64_t[::1] bounds):
    """The smallest forms of chunks of `data`: (codec, payload), (RAW, None) for one that nothing makes smaller.

    `bounds` are (start, end) of each chunk in `data`, flat. ValueError if they do not fit.
    """
    cdef size_t count = bounds.shape[0] // 2, i, n
    cdef uint64_t start, end
    cdef const uint8_t *at
    if bounds.shape[0] % 2:
        raise ValueError("a chunk without an end")
    forms = []
    for i in range(count):
        start, end = bounds[2 * i], bounds[2 * i + 1]
        if start > end or end > <uint64_t>data.shape[0] or end - start > MAX_PLAIN:
            raise ValueError(f"no chunk: bytes {start} to {end} of {data.shape[0]}")
        at, n = &data[0] + start, end - start
        form = None
        if n >= TOO_SMALL:
            form = pack_words(tools, at, n)
            if form is None or <size_t>len(form[1]) >= n:
                form = ZSTD, tools.compress(PyMemoryView_FromMemory(<char *>at, n, PyBUF_READ))
        forms.append((RAW, None) if form is None or <size_t>len(form[1]) >= n else form)
    return forms


def pack_difference(Packer tools not None, const uint8_t[::1] plain, const uint8_t[::1] base):
    """(codec, payload) of plain ^ base, of which it is not said that it is smaller. ValueError if they differ in length."""
    cdef size_t n = plain.shape[0]
    cdef double bits[8]
    cdef Shape shape
    if <size_t>base.shape[0] != n or not 0 < n <= MAX_PLAIN:
        raise ValueError(f"pack_difference: {n} and {base.shape[0]} bytes")
    with nogil:
        memcpy(tools.difference, &plain[0], n)
        ijfs_xor_into(tools.difference, &base[0], n)
        shape.width = 0
        if n >= 8:
            ijfs_entropies(tools.difference, NULL, n, SAMPLES, bits)
            shape = shape_of(bits)
    if shape.width:
        return XOR_PLANES, pack_planes(tools, tools.difference, n, shape)
    return XOR_ZSTD, tools.compress(PyMemoryView_FromMemory(<char *>tools.difference, n, PyBUF_READ))

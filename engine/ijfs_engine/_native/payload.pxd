"""What the payload of a frame begins with and how it is encoded, for numeric_codec.pyx, compress.pyx, unpack.pyx and the readers."""

# frames.Codec has these numbers, too.
cdef enum:
    RAW = 0
    ZSTD = 1
    PLANES = 2
    XOR_ZSTD = 3
    XOR_PLANES = 4
    NUMBERS = 5
    PLANE_HEAD = 8
    NUMBER_HEAD = 20
    MAX_PLAIN = 256 * 1024

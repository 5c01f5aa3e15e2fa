"""Many stored chunks unpacked in one call, without the GIL, straight to where their bytes belong. Called by the reader.

A chunk at a time in Python costs some 100 us, most of them with the GIL held, so more threads read no faster. Here a
read of megabytes is a few calls: the chunks of a `ReadPlan` are sorted by their place in the packs, and `read` reads
the packs, unpacks each frame either where its only piece goes or into bytes of its own, checks it, and completes what is
a difference to others among them. What is stored as it is goes from the pack to where it belongs without a copy.

Whatever does not fit (a frame that is another than the index says, a payload that does not unpack, wrong bytes) is left
undone: the caller reads such a chunk by itself, and format/chunk_codec.py says what is wrong with it. A chunk counts as
read only once its id was checked. docs/format.md ("Frame", "Codecs") has the bytes; reference.py the slow twin.
"""

from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy

from .payload cimport MAX_PLAIN, RAW, XOR_PLANES, XOR_ZSTD
from .unpack cimport READ_ROOM, Unpacker, is_chunk, unpack
from .read_plan cimport BASED, DONE, HEADER, ID, PLACED, WANTED, Chunk, ReadPlan

cdef extern from "bytes.h" nogil:
    void ijfs_xor_into(uint8_t *out, const uint8_t *b, size_t n)

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t preadv(int fd, const iovec *parts, int n, long offset)

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    enum:
        CLOCK_MONOTONIC
        CLOCK_THREAD_CPUTIME_ID
    int clock_gettime(int clock, timespec *now)

# format/frames.py has these numbers, too.
cdef enum:
    BASE = 40
    CHUNK_KIND = 1
    # What is stored as it is and this long is read to where it belongs: a read of a megabyte then has few parts.
    DIRECT = 16 << 10
    MOST_PARTS = 2 * (READ_ROOM // DIRECT) + 1
cdef uint32_t MAGIC = 0x664A49AB
cdef uint8_t NO_ID[ID]

cdef struct Read:
    uint64_t begin
    uint64_t size
    size_t first        # in `order`
    size_t end
    size_t pack         # in `packs`

cdef struct Place:
    uint32_t pack
    uint32_t number
    uint64_t offset


cdef int compare(const void *a, const void *b) noexcept nogil:
    cdef const Place *one = <const Place *>a
    cdef const Place *other = <const Place *>b
    if one.pack != other.pack:
        return 1 if one.pack > other.pack else -1
    return (one.offset > other.offset) - (one.offset < other.offset)


cdef double seconds(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef class BulkRead(ReadPlan):
    """Bytes of files on their way into buffers. Used by one thread, in the order of its methods."""

    cdef Unpacker tools
    cdef object opener      # of an encrypted repository: opens sealed payloads
    cdef uint8_t key[ID]    # of ids
    cdef bint keyed
    cdef Place *order       # chunks by place
    cdef Read *reads
    cdef size_t n_reads
    cdef size_t n_packs

    def __cinit__(self, Unpacker tools not None, opener=None, bytes key=None):
        """Of an encrypted repository: `opener` gives the payloads of sealed frames (each from its header on), None for one
        that was altered; `key` keys the ids of chunks."""
        self.tools, self.opener, self.keyed = tools, opener, key is not None
        if key is not None:
            if len(key) != ID:
                raise ValueError("a key has 32 bytes")
            memcpy(self.key, PyBytes_AS_STRING(key), ID)

    def __dealloc__(self):
        free(self.order)
        free(self.reads)

    def schedule(self, uint64_t gap, uint64_t longest, int below=256):
        """Plan to read those of the chunks wanted whose place is known; which packs that takes, for `read`.

        [pack number, its first byte that is read, the end of the last]. Frames nearer than `gap` are one read, of at most
        `longest` bytes. A chunk that is not less deep than `below` is left out.
        """
        cdef size_t n = 0, number
        cdef Chunk *chunk
        free(self.order)
        self.order = <Place *>malloc((self.n + 1) * sizeof(Place))
        if self.order == NULL:
            raise MemoryError
        for number in range(self.n):
            chunk = &self.chunks[number]
            if chunk.state != WANTED or not chunk.span or chunk.depth >= below:
                continue
            if not self.settle_target(number):
                chunk.span = 0
            else:
                chunk.state = PLACED
                self.order[n].pack, self.order[n].offset, self.order[n].number = chunk.pack, chunk.offset, number
                n += 1
        with nogil:
            qsort(self.order, n, sizeof(Place), compare)
        return self.plan(n, gap, min(longest, <uint64_t>READ_ROOM))

    cdef list plan(self, size_t n, uint64_t gap, uint64_t longest):
        cdef size_t i
        cdef uint64_t stop
        cdef Chunk *chunk
        cdef Read *read = NULL
        cdef Read *grown = <Read *>realloc(self.reads, (n + 1) * sizeof(Read))
        if grown == NULL:
            raise MemoryError
        self.reads, self.n_reads = grown, 0
        packs, pack = [], None
        for i in range(n):
            chunk = &self.chunks[self.order[i].number]
            stop = chunk.offset + chunk.span
            if i == 0 or chunk.pack != self.order[i - 1].pack:
                pack = [chunk.pack, chunk.offset, stop]
                packs.append(pack)
                read = NULL
            if read == NULL or chunk.offset > read.begin + read.size + gap or stop > read.begin + longest:
                read = &self.reads[self.n_reads]
                read.begin, read.size, read.first, read.pack = chunk.offset, 0, i, len(packs) - 1
                self.n_reads += 1
            read.end, read.size = i + 1, max(read.size, stop - read.begin)
            pack[2] = max(pack[2], stop)
        self.n_packs = len(packs)
        return packs

    def planned(self):
        """(number of the pack in what `schedule` gave, offset, bytes) of what `read` will read, in that order."""
        cdef size_t i
        return [(self.reads[i].pack, self.reads[i].begin, self.reads[i].size) for i in range(self.n_reads)]

    def read(self, descriptors):
        """Read, unpack and check what was planned: a descriptor for each pack, -1 where there is none. OSError.

        How many seconds the reads waited and did not work. A pack that ends too early, or whose disk reports an error,
        leaves chunks out.
        """
        cdef size_t i, n = self.n_packs
        cdef int problem = 0
        cdef double waited = 0
        cdef int *files
        if <size_t>len(descriptors) != n:
            raise ValueError(f"{len(descriptors)} descriptors for {n} packs")
        files = <int *>malloc((n + 1) * sizeof(int))
        if files == NULL:
            raise MemoryError
        try:
            for i in range(n):
                files[i] = descriptors[i]
            with nogil:
                for i in range(self.n_reads):
                    if not problem and files[self.reads[i].pack] >= 0:
                        problem = self.read_one(files[self.reads[i].pack], &self.reads[i], &waited)
                    self.leave(&self.reads[i])
                if not problem:
                    self.complete()
        finally:
            free(files)
            self.n_reads = self.n_packs = 0
        if problem:
            raise OSError(problem, "reading a pack")
        return waited

    cdef int read_one(self, int file, const Read *read, double *waited) except -1 nogil:
        """One read, and everything with its frames; errno, or 0."""
        cdef iovec parts[MOST_PARTS]
        cdef int n = self.parts_of(read, parts)
        cdef double began = seconds(CLOCK_MONOTONIC), worked = seconds(CLOCK_THREAD_CPUTIME_ID)
        cdef ssize_t got = read_parts(file, parts, n, read.begin)
        cdef Chunk *chunk
        cdef size_t i
        waited[0] += seconds(CLOCK_MONOTONIC) - began - (seconds(CLOCK_THREAD_CPUTIME_ID) - worked)
        if got < 0:
            # What a bad sector lies in is wanted still, and asked for one by one (object_store.py).
            return 0 if got == -EIO else <int>-got
        if self.opener is not None:
            return self.open_all(read, got)
        for i in range(read.first, read.end):
            chunk = &self.chunks[self.order[i].number]
            if chunk.offset - read.begin + chunk.span <= <uint64_t>got:
                self.unframe(self.order[i].number, self.tools.packed + (chunk.offset - read.begin))
        return 0

    cdef int open_all(self, const Read *read, size_t got) except -1 with gil:
        """The frames of a read, opened all at once and unpacked: to change hands of the interpreter's lock costs more than
        to open one."""
        cdef Chunk *chunk
        cdef const uint8_t *frame
        cdef const uint8_t *payload
        cdef size_t i, size
        cdef list here = []
        for i in range(read.first, read.end):
            chunk = &self.chunks[self.order[i].number]
            if chunk.offset - read.begin + chunk.span <= got:
                here.append(i)
        frames = []
        for i in here:
            chunk = &self.chunks[self.order[i].number]
            frame = self.tools.packed + (chunk.offset - read.begin)
            frames.append(PyMemoryView_FromMemory(<char *>frame, chunk.span, PyBUF_READ))
        payloads = self.opener(frames)
        for i, opened in zip(here, payloads):
            if opened is None:
                continue
            chunk = &self.chunks[self.order[i].number]
            frame = self.tools.packed + (chunk.offset - read.begin)
            payload, size = <const uint8_t *>PyBytes_AS_STRING(opened), PyBytes_GET_SIZE(opened)
            with nogil:
                self.unframe_opened(self.order[i].number, frame, payload, size)
        return 0

    cdef int parts_of(self, const Read *read, iovec *parts) noexcept nogil:
        """Where the bytes of a read go: all to `packed`, at their distance from its begin, but for payloads that are chunks."""
        cdef uint64_t done = 0, payload
        cdef int n = 0
        cdef Chunk *chunk
        cdef size_t i
        for i in range(read.first, read.end):
            chunk = &self.chunks[self.order[i].number]
            payload = chunk.offset - read.begin + HEADER
            chunk.direct = (chunk.codec == RAW and not chunk.apart and chunk.plain >= DIRECT
                            and chunk.plain + HEADER == chunk.span and payload >= done)
            if chunk.direct:
                if payload > done:
                    parts[n].iov_base, parts[n].iov_len = self.tools.packed + done, payload - done
                    n += 1
                parts[n].iov_base, parts[n].iov_len = chunk.out, chunk.plain
                n += 1
                done = payload + chunk.plain
        if read.size > done:
            parts[n].iov_base, parts[n].iov_len = self.tools.packed + done, read.size - done
            n += 1
        return n

    cdef void leave(self, const Read *read) noexcept nogil:
        """What did not come is wanted still, and its place was not right."""
        cdef Chunk *chunk
        cdef size_t i
        for i in range(read.first, read.end):
            chunk = &self.chunks[self.order[i].number]
            if chunk.state == PLACED:
                chunk.state, chunk.span = WANTED, 0

    cdef bint fits(self, const Chunk *chunk, const uint8_t *frame) noexcept nogil:
        """Whether a frame's header is that of the chunk."""
        cdef uint32_t stored = 0, plain = 0, magic = 0
        memcpy(&magic, frame, 4)
        memcpy(&stored, frame + 8, 4)
        memcpy(&plain, frame + 12, 4)
        return (magic == MAGIC and frame[4] == CHUNK_KIND and frame[6] == chunk.depth and plain == chunk.plain
                and HEADER + <size_t>frame[7] * BASE + stored == chunk.span and memcmp(frame + 20, chunk.id, ID) == 0)

    cdef void unframe(self, size_t number, const uint8_t *frame) noexcept nogil:
        cdef Chunk *chunk = &self.chunks[number]
        cdef size_t head = HEADER + <size_t>frame[7] * BASE
        if not self.fits(chunk, frame):
            return
        if not chunk.direct:
            self.unpack_payload(number, frame, frame + head, chunk.span - head)
        elif frame[5] == RAW and chunk.span - head == chunk.plain:
            self.settle(number)

    cdef void unframe_opened(self, size_t number, const uint8_t *frame, const uint8_t *payload, size_t size) noexcept nogil:
        if self.fits(&self.chunks[number], frame):
            self.unpack_payload(number, frame, payload, size)

    cdef void unpack_payload(self, size_t number, const uint8_t *frame, const uint8_t *payload, size_t size) noexcept nogil:
        cdef Chunk *chunk = &self.chunks[number]
        cdef int codec = frame[5]
        if unpack(self.tools, codec, payload, size, chunk.out, chunk.plain):
            if codec == XOR_ZSTD or codec == XOR_PLANES:
                self.keep_bases(chunk, frame + HEADER, frame[7])
            else:
                self.settle(number)

    cdef void settle(self, size_t number) noexcept nogil:
        """What is unpacked is the chunk's, or the chunk stays wanted."""
        cdef Chunk *chunk = &self.chunks[number]
        if is_chunk(self.tools, self.key if self.keyed else NULL, chunk.out, chunk.plain, chunk.id):
            chunk.state = DONE
            if chunk.apart:
                self.deliver(number, chunk.out)
        else:
            chunk.state, chunk.span = WANTED, 0

    # --- differences

    cdef void keep_bases(self, Chunk *chunk, const uint8_t *records, uint8_t n) noexcept nogil:
        free(chunk.bases)
        chunk.bases = <uint8_t *>malloc(n * BASE + 1)
        if chunk.bases != NULL:
            memcpy(chunk.bases, records, n * BASE)
            chunk.n_bases, chunk.state = n, BASED

    cdef Chunk *base(self, const uint8_t *record) noexcept nogil:
        """The chunk that a base record names, if it was unpacked here and is right."""
        cdef size_t number = self.find(record)
        cdef Chunk *chunk = &self.chunks[number - 1]
        return chunk if number and chunk.state == DONE and chunk.out != NULL else NULL

    cdef bint lacks(self, const uint8_t *record) noexcept nogil:
        return memcmp(record, NO_ID, ID) != 0 and self.base(record) == NULL

    cdef void complete(self) noexcept nogil:
        """Complete the differences whose bases are there, then those that these are the bases of, until there are none."""
        cdef bint more = True
        cdef size_t number, i
        cdef Chunk *chunk
        while more:
            more = False
            for number in range(self.n):
                chunk = &self.chunks[number]
                if chunk.state != BASED:
                    continue
                for i in range(chunk.n_bases):
                    if self.lacks(chunk.bases + i * BASE):
                        break
                else:
                    self.add_own_bases(number)
                    more = True

    cdef void add_own_bases(self, size_t number) noexcept nogil:
        cdef Chunk *chunk = &self.chunks[number]
        cdef Chunk *base
        cdef size_t done = 0, i
        for i in range(chunk.n_bases):
            base = self.base(chunk.bases + i * BASE)
            if not add_base(chunk, chunk.bases + i * BASE, &done, base.out if base else NULL, base.plain if base else 0):
                break
        self.end(number, done)

    cdef void end(self, size_t number, size_t done) noexcept nogil:
        """A difference to which `done` bytes of its bases were added."""
        cdef Chunk *chunk = &self.chunks[number]
        free(chunk.bases)
        chunk.bases = NULL
        chunk.state = WANTED
        if done == chunk.plain:
            self.settle(number)

    def based(self):
        """(number, depth) of the differences that lack bases."""
        cdef size_t i
        return [(i, self.chunks[i].depth) for i in range(self.n) if self.chunks[i].state == BASED]

    def lacking(self, size_t number):
        """The ids of the chunks that are not done here and that a difference is based on."""
        cdef Chunk *chunk = self.difference(number)
        cdef size_t i
        return [PyBytes_FromStringAndSize(<const char *>chunk.bases + i * BASE, ID)
                for i in range(chunk.n_bases) if self.lacks(chunk.bases + i * BASE)]

    def add_bases(self, size_t number, plains):
        """Complete a difference: `plains` has the plain bytes, by id, of what it is `lacking`."""
        cdef Chunk *chunk = self.difference(number)
        cdef Chunk *base
        cdef const uint8_t[::1] plain
        cdef size_t done = 0, i
        cdef bint good
        for i in range(chunk.n_bases):
            base = self.base(chunk.bases + i * BASE)
            if base != NULL or not self.lacks(chunk.bases + i * BASE):
                good = add_base(chunk, chunk.bases + i * BASE, &done, base.out if base else NULL, base.plain if base else 0)
            else:
                plain = plains[PyBytes_FromStringAndSize(<const char *>chunk.bases + i * BASE, ID)]
                good = add_base(chunk, chunk.bases + i * BASE, &done, &plain[0] if plain.shape[0] else NULL, plain.shape[0])
            if not good:
                break
        with nogil:
            self.end(number, done)

    cdef Chunk *difference(self, size_t number) except NULL:
        if number >= self.n or self.chunks[number].state != BASED:
            raise ValueError(f"chunk {number} is no difference")
        return &self.chunks[number]


cdef bint add_base(Chunk *chunk, const uint8_t *record, size_t *done, const uint8_t *base, size_t size) noexcept nogil:
    """The part of a chunk that a record is for, from byte done[0] on; `base` is the whole chunk that it names, NULL: zeros."""
    cdef uint32_t offset = 0, length = 0
    memcpy(&offset, record + ID, 4)
    memcpy(&length, record + ID + 4, 4)
    if length > chunk.plain - done[0] or (base != NULL and <size_t>offset + length > size):
        return False
    if base != NULL:
        ijfs_xor_into(chunk.out + done[0], base + offset, length)
    elif memcmp(record, NO_ID, ID) != 0 and length:
        return False
    done[0] += length
    return True


cdef ssize_t read_parts(int file, iovec *parts, int n, uint64_t offset) noexcept nogil:
    """Fill the parts, in order; how many bytes there were, or -errno."""
    cdef ssize_t got, done = 0
    cdef int at = 0
    while at < n:
        got = preadv(file, parts + at, n - at, offset + done)
        if got < 0 and errno == EINTR:
            continue
        if got < 0:
            return -errno
        if got == 0:
            break
        done += got
        while at < n and <size_t>got >= parts[at].iov_len:
            got -= parts[at].iov_len
            at += 1
        if at < n:
            parts[at].iov_base, parts[at].iov_len = <uint8_t *>parts[at].iov_base + got, parts[at].iov_len - got
    return done

"""Extents at work: the columns of a leaf, and putting new leaves and base records together out of ranges of others.

A save of a sibling refers to some ten thousand pieces of its parent's leaves; in Python each cost microseconds with the
GIL held. Called by write/page_writer.py, write/page_deltas.py and write/file_writer.py and, for the columns, by
read_plan.pyx. Slow twins are in reference.py.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

cdef extern from "bytes.h" nogil:
    enum:
        IJFS_PAGE
        IJFS_ZERO
        IJFS_SAME
        IJFS_FRESH
    size_t ijfs_changed_lines(const uint8_t *a, const uint8_t *b, size_t n)

cdef enum:
    ID = 32
    BASE = 40
    # format/place.py has this number, too.
    ROW = 18
cdef uint32_t ZERO_RUN = 0xFFFFFFFF


cdef class Columns:
    """The extents of a leaf, or of a region: which of `ids` (ZERO_RUN: zeros), offset in its plain bytes, length.

    ValueError for columns that differ in length, name an id that is not there, or make 4 GiB or more.
    """

    def __cinit__(self, bytes ids not None, const uint32_t[::1] index, const uint32_t[::1] offsets, const uint32_t[::1] lengths):
        cdef size_t n = index.shape[0], i, known = len(ids) // ID
        if <size_t>offsets.shape[0] != n or <size_t>lengths.shape[0] != n:
            raise ValueError("the columns of a leaf differ in length")
        self.ids, self.n = ids, n
        self.index = <uint32_t *>malloc((4 * n + 1) * sizeof(uint32_t))
        if self.index == NULL:
            raise MemoryError
        self.offset, self.length, self.start = self.index + n, self.index + 2 * n, self.index + 3 * n
        for i in range(n):
            if index[i] != ZERO_RUN and index[i] >= known:
                raise ValueError("a leaf names a chunk that it does not have")
            self.index[i], self.offset[i], self.length[i] = index[i], offsets[i], lengths[i]
            self.start[i] = self.size
            self.size += lengths[i]
            if self.size > 0xFFFFFFFF:
                raise ValueError("a leaf is too large")

    def __dealloc__(self):
        free(self.index)

    def place(self, bytes rows not None):
        """Keep where the chunks are: a row of the index for each id, of zeros for one that is nowhere. It need not stay true:
        who finds another frame there looks the chunk up again."""
        if len(rows) != len(self.ids) // ID * ROW:
            raise ValueError(f"{len(rows)} bytes of rows for {len(self.ids) // ID} chunks")
        self.rows = rows

    cdef size_t find(self, uint64_t inside) noexcept nogil:
        """The extent that holds byte `inside`, which the leaf has."""
        cdef size_t low = 0, high = self.n, middle
        while high - low > 1:
            middle = (low + high) // 2
            if self.start[middle] <= inside:
                low = middle
            else:
                high = middle
        return low

    def zeros(self, uint64_t inside, uint64_t size):
        """(offset, bytes) of the stretches of zeros among `size` bytes from `inside` on. ValueError if there are fewer."""
        cdef uint64_t end = inside + size, start, stop
        cdef size_t at
        if inside > self.size or size > self.size - inside:
            raise ValueError(f"a leaf of {self.size} bytes does not have {size} from {inside}")
        found = []
        at = self.find(inside)
        while at < self.n and self.start[at] < end:
            if self.index[at] == ZERO_RUN:
                start, stop = max(<uint64_t>self.start[at], inside), min(<uint64_t>self.start[at] + self.length[at], end)
                if start < stop:
                    found.append((start, stop - start))
            at += 1
        return found


cdef class Assembly:
    """Extents put one behind the other; what continues the extent before it becomes one with it."""

    cdef dict numbers
    cdef uint32_t *rows     # number, offset, length
    cdef size_t n
    cdef size_t room

    def __cinit__(self):
        self.numbers = {}

    def __dealloc__(self):
        free(self.rows)

    def __len__(self):
        return self.n

    cdef int put(self, uint32_t number, uint32_t offset, uint32_t length) except -1:
        cdef uint32_t *last
        cdef uint32_t *grown
        if length == 0:
            return 0
        if self.n:
            last = self.rows + 3 * (self.n - 1)
            if last[0] == number and (number == ZERO_RUN or last[1] + last[2] == offset):
                last[2] += length
                return 0
        if self.n == self.room:
            grown = <uint32_t *>realloc(self.rows, (2 * self.room + 64) * 3 * sizeof(uint32_t))
            if grown == NULL:
                raise MemoryError
            self.rows, self.room = grown, 2 * self.room + 64
        last = self.rows + 3 * self.n
        last[0], last[1], last[2] = number, offset, length
        self.n += 1
        return 0

    cdef uint32_t number_of(self, bytes ident) except? 0xFFFFFFFF:
        known = self.numbers.get(ident)
        if known is None:
            known = self.numbers[ident] = len(self.numbers)
        return known

    def zeros(self, uint32_t length):
        """So many zeros."""
        self.put(ZERO_RUN, 0, length)

    def piece(self, bytes ident not None, uint32_t offset, uint32_t length):
        """`length` bytes from `offset` of a chunk."""
        if len(ident) != ID:
            raise ValueError(f"an id has {ID} bytes, not {len(ident)}")
        self.put(self.number_of(ident), offset, length)

    def span(self, Columns columns not None, uint64_t inside, uint64_t size):
        """`size` bytes from `inside` of a leaf. ValueError if it does not have them."""
        cdef size_t at
        cdef uint64_t step
        if inside > columns.size or size > columns.size - inside:
            raise ValueError(f"a leaf of {columns.size} bytes does not have {size} from {inside}")
        if size == 0:
            return
        at = columns.find(inside)
        inside -= columns.start[at]
        while size:
            step = min(size, <uint64_t>columns.length[at] - inside)
            if columns.index[at] == ZERO_RUN:
                self.put(ZERO_RUN, 0, step)
            else:
                ident = PyBytes_FromStringAndSize(PyBytes_AS_STRING(columns.ids) + <size_t>columns.index[at] * ID, ID)
                self.put(self.number_of(ident), columns.offset[at] + inside, step)
            size -= step
            inside = 0
            at += 1

    def pages(self, const uint8_t[::1] kinds, uint64_t first, same, fresh):
        """The pages from number `first` on whose `kinds` these are: zeros, or out of `same` or `fresh`.

        Both are lists in ascending order of (page, pages, Columns, page in the columns). ValueError if a page is in none.
        """
        cdef size_t n = kinds.shape[0], i = 0, j, same_at = 0, fresh_at = 0
        while i < n:
            j = i + 1
            while j < n and kinds[j] == kinds[i]:
                j += 1
            if kinds[i] == IJFS_ZERO:
                self.put(ZERO_RUN, 0, (j - i) * IJFS_PAGE)
            elif kinds[i] == IJFS_SAME:
                same_at = self.run(same, same_at, first + i, first + j)
            else:
                fresh_at = self.run(fresh, fresh_at, first + i, first + j)
            i = j

    cdef size_t run(self, list sources, size_t at, uint64_t page, uint64_t end) except? 0xFFFFFFFFFFFFFFFF:
        cdef uint64_t begin, count, inside, step
        while page < end:
            if at >= <size_t>len(sources):
                raise ValueError(f"nothing has page {page}")
            begin, count, columns, inside = sources[at]
            if begin + count <= page:
                at += 1
                continue
            if begin > page:
                raise ValueError(f"nothing has page {page}")
            step = min(end, begin + count) - page
            self.span(columns, (inside + page - begin) * IJFS_PAGE, step * IJFS_PAGE)
            page += step
        return at

    def under(self, const int64_t[::1] theirs, uint64_t start, uint64_t end, list sources not None):
        """Bytes [start, end) of pages that lie over pages `theirs` (-1: zeros) of `sources`, as in `pages`."""
        cdef uint64_t page, until
        cdef int64_t at
        if end > <uint64_t>theirs.shape[0] * IJFS_PAGE:
            raise ValueError(f"there are no bytes {start} to {end} of {theirs.shape[0]} pages")
        while start < end:
            page = start // IJFS_PAGE
            until = min(end, (page + 1) * IJFS_PAGE)
            at = theirs[page]
            if at < 0:
                self.put(ZERO_RUN, 0, until - start)
            else:
                self.page_of(sources, at, start - page * IJFS_PAGE, until - start)
            start = until

    cdef int page_of(self, list sources, uint64_t page, uint64_t inside, uint64_t size) except -1:
        """Bytes of one page of the one of `sources` that has it."""
        cdef uint64_t begin, count, at
        for source in sources:
            begin, count, columns, at = source
            if begin <= page < begin + count:
                self.span(columns, (at + page - begin) * IJFS_PAGE + inside, size)
                return 0
        raise ValueError(f"nothing has page {page}")

    def leaf(self):
        """(ids, and the columns: number, offset, length, as bytes of native u32)."""
        columns = [bytearray(4 * self.n) for _ in range(3)]
        cdef uint32_t[::1] column
        cdef size_t i, j, n_columns = 3 if self.n else 0
        for j in range(n_columns):
            column = memoryview(columns[j]).cast("I")
            for i in range(self.n):
                column[i] = self.rows[3 * i + j]
        return (b"".join(self.numbers), *columns)

    def ids(self):
        """The distinct chunks, in order of first use."""
        return list(self.numbers)

    def bases(self):
        """Packed base records (frames.BASE); zeros have an id of zeros."""
        out = bytearray(BASE * self.n)
        cdef uint8_t[::1] view = out
        cdef size_t i
        ids = list(self.numbers)
        for i in range(self.n):
            if self.rows[3 * i] != ZERO_RUN:
                memcpy(&view[BASE * i], PyBytes_AS_STRING(ids[self.rows[3 * i]]), ID)
            memcpy(&view[BASE * i + ID], &self.rows[3 * i + 1], 8)
        return bytes(out)


def fresh_pages(const uint8_t[::1] kinds, const uint16_t[::1] own, const uint16_t[::1] theirs, matches):
    """What the parent has under each page of kind FRESH.

    `own` and `theirs` are hints per page (0: zeros, or nothing), `matches` (own page, their page, pages) in ascending
    order. Returns page numbers (u32), the parent's pages (i64, -1: none), and whether the hints agree (u8), as bytes.
    """
    cdef size_t n = kinds.shape[0], i, at = 0, count = 0, n_matches = len(matches)
    cdef uint64_t begin = 0, page = 0, pages = 0
    if <size_t>own.shape[0] != n or <size_t>theirs.shape[0] != n:
        raise ValueError(f"{own.shape[0]} and {theirs.shape[0]} hints for {n} pages")
    for i in range(n):
        count += kinds[i] == IJFS_FRESH
    numbers, under, likely = bytearray(4 * count), bytearray(8 * count), bytearray(count)
    if count == 0:
        return numbers, under, likely
    cdef uint32_t[::1] numbers_at = memoryview(numbers).cast("I")
    cdef int64_t[::1] under_at = memoryview(under).cast("q")
    cdef uint8_t[::1] likely_at = likely
    if n_matches:
        begin, page, pages = matches[0]
    count = 0
    for i in range(n):
        if kinds[i] != IJFS_FRESH:
            continue
        while at < n_matches and begin + pages <= i:
            at += 1
            if at < n_matches:
                begin, page, pages = matches[at]
        numbers_at[count] = i
        under_at[count] = -1
        if at < n_matches and begin <= i and theirs[i]:
            under_at[count] = page + i - begin
            likely_at[count] = theirs[i] == own[i]
        count += 1
    return numbers, under, likely


def long_runs(const int64_t[::1] theirs, const uint8_t[::1] likely, size_t minimum):
    """(first, count) of at least `minimum` unlikely pages over pages of the parent that follow one another."""
    cdef size_t n = theirs.shape[0], start = 0, at
    if <size_t>likely.shape[0] != n:
        raise ValueError(f"{likely.shape[0]} marks for {n} pages")
    found = []
    for at in range(1, n + 1):
        if at == n or likely[at] or likely[at - 1] or theirs[at] != theirs[at - 1] + 1 or theirs[at - 1] < 0:
            if at - start >= minimum and theirs[start] >= 0 and not likely[start]:
                found.append((start, at - start))
            start = at
    return found


def compare_pages(const uint8_t[::1] data, const uint8_t[::1] base, const int64_t[::1] theirs, uint8_t[::1] changed):
    """changed[i] = how many of the 64 cache lines of page i of data and base differ, where theirs[i] is not negative."""
    cdef size_t n = changed.shape[0], i
    if not (<size_t>data.shape[0] == <size_t>base.shape[0] == n * IJFS_PAGE) or <size_t>theirs.shape[0] != n:
        raise ValueError(f"compare_pages: {data.shape[0]} and {base.shape[0]} bytes, {theirs.shape[0]} of {n} pages")
    with nogil:
        for i in range(n):
            if theirs[i] >= 0:
                changed[i] = ijfs_changed_lines(&data[i * IJFS_PAGE], &base[i * IJFS_PAGE], IJFS_PAGE)


def mark_same(uint8_t[::1] kinds, const uint32_t[::1] numbers, const uint8_t[::1] changed):
    """Class as SAME the pages of which no line has changed."""
    cdef size_t n = numbers.shape[0], i
    if <size_t>changed.shape[0] != n:
        raise ValueError(f"{changed.shape[0]} counts for {n} pages")
    for i in range(n):
        if numbers[i] >= <size_t>kinds.shape[0]:
            raise ValueError(f"there is no page {numbers[i]}")
        if changed[i] == 0:
            kinds[numbers[i]] = IJFS_SAME


def mark_pages_of(set worn not None, uint8_t[::1] marks not None, list sources not None):
    """Set to 1 the marks of the pages of `sources` with bytes of a chunk whose id begins with 8 bytes in `worn`.

    A source is (page, pages, columns, page in them), as in `Assembly`. ValueError for one that reaches beyond its columns
    or the marks.
    """
    cdef uint64_t page, pages, inside, begin, end, at, stop, number
    cdef size_t i
    cdef Columns columns
    for source in sources:
        page, pages, columns, inside = source
        begin, end = inside * IJFS_PAGE, (inside + pages) * IJFS_PAGE
        if page + pages > <uint64_t>marks.shape[0] or end > columns.size:
            raise ValueError("pages that are not there")
        i = columns.find(begin)
        while i < columns.n and columns.start[i] < end:
            at, stop = max(<uint64_t>columns.start[i], begin), min(<uint64_t>columns.start[i] + columns.length[i], end)
            if columns.index[i] != ZERO_RUN and at < stop and columns.ids[columns.index[i] * ID : columns.index[i] * ID + 8] in worn:
                for number in range(page + at // IJFS_PAGE - inside, page + (stop - 1) // IJFS_PAGE - inside + 1):
                    marks[number] = 1
            i += 1

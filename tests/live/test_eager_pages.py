"""Why memory is read before a restored program runs, told from the images alone. That CRIU writes them like this, and
reads just these pages, is tested by test_lazy_restores.py."""

from __future__ import annotations

from image_bytes import MEMFD_MAGIC, MM_MAGIC, image_file, message, pagemap

from ijfs.live.criu.eager_pages import reasons

PAGE = 4096
PRIVATE, SHARED, LOCKED, HUGE, ANONYMOUS = 0x2, 0x1, 0x2000, 0x40000, 0x20
LAZY, PRESENT = 2, 4


def _mm(*areas: tuple[int, int, int, int]) -> bytes:
    """(first page, pages, flags, number of the shared memory)"""
    vmas = [
        (14, message((1, at * PAGE), (2, (at + pages) * PAGE), (4, shmid), (6, flags)))
        for at, pages, flags, shmid in areas
    ]
    return image_file(MM_MAGIC, [message(*vmas)])


def _memfd(shmid: int, *, name: bytes = b"name", huge: bool = False) -> bytes:
    return message((1, name), (5, shmid), *([(8, 1)] if huge else []))


def test_each_kind_of_memory_is_told_from_the_others() -> None:
    images = {
        "mm-7.img": _mm(
            (16, 8, PRIVATE, 0),
            (24, 8, PRIVATE | ANONYMOUS | LOCKED, 0),
            (64, 512, PRIVATE | ANONYMOUS | HUGE, 0),
            (1024, 512, SHARED | ANONYMOUS | HUGE, 31),
            (4096, 4, SHARED | ANONYMOUS, 32),
        ),
        # One entry over two mappings; what is lazy, or is in no mapping, is nobody's.
        "pagemap-7.img": pagemap(
            [
                (20 * PAGE, 8, PRESENT),
                (64 * PAGE, 512, PRESENT),
                (700 * PAGE, 3, LAZY | PRESENT),
                (900 * PAGE, 1, PRESENT),
            ]
        ),
        "pagemap-shmem-31.img": pagemap([(0, 512, PRESENT)]),
        "pagemap-shmem-32.img": pagemap([(0, 4, PRESENT)]),
        "pagemap-shmem-33.img": pagemap([(0, 5, PRESENT)]),
        "pagemap-shmem-34.img": pagemap([(0, 512, PRESENT)]),
        "memfd.img": image_file(MEMFD_MAGIC, [_memfd(33), _memfd(34, huge=True), _memfd(35, name=b"/dev/zero")]),
        "pagemap-shmem-35.img": pagemap([(0, 6, PRESENT)]),
    }
    pages = {why: size // PAGE for why, size in reasons(images).items()}
    assert pages == {"private": 5, "locked": 4, "hugetlb": 3 * 512, "shared": 4 + 6, "memfd": 5}


def test_a_program_without_any_of_it_reads_nothing() -> None:
    assert (
        reasons({"mm-7.img": _mm((16, 8, PRIVATE | ANONYMOUS, 0)), "pagemap-7.img": pagemap([(16 * PAGE, 8, 6)])}) == {}
    )

"""Saves that remember the fingerprints of the save before: every byte comes back, and little of the parent is read."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from criu_images import PAGE, image_set
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_page_writer import BASE, MIB, change, check, memory, noise

from ijfs_engine import KeptPrints, Repository, Snapshot
from ijfs_engine.storage.object_store import Store
from ijfs_engine.write.fingerprints import expand_key
from ijfs_engine.write.parent_pages import ParentPages


def save(repository: Repository, files: Mapping[str, bytes], kept: KeptPrints, *parents: Snapshot) -> Snapshot:
    with repository.begin([parent.id for parent in parents], kept=kept) as writer:
        writer.add_images("images", files)
        return writer.commit()


def take_memory(kept: KeptPrints, start: int = 0, length: int = 0) -> None:
    """As the kernel does when it is short of it: what is free for it to take reads as zeros."""
    for slab in kept._slabs:
        slab.madvise(mmap.MADV_DONTNEED, start, length or len(slab))


def pages_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the numbers of the parent's pages that are read."""
    found: list[int] = []
    read = ParentPages.read_pages

    def counted(self: ParentPages, theirs: memoryview, *rest: object) -> None:
        found.extend(page for page in theirs if page >= 0)
        read(self, theirs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ParentPages, "read_pages", counted)
    return found


def forbid_sidecars(monkeypatch: pytest.MonkeyPatch) -> None:
    def sidecars(self: Store, ids: Sequence[bytes]) -> list[bytes | None]:
        raise AssertionError("stored fingerprints were read")

    monkeypatch.setattr(Store, "sidecars", sidecars)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(memory, st.sampled_from(["", "memory is short", "given up", "went back"])), min_size=2, max_size=5
    )
)
def test_any_history_of_a_process_comes_back(
    repository: Repository, history: list[tuple[dict[int, bytes], str]]
) -> None:
    kept = KeptPrints()
    saved: list[tuple[Snapshot, dict[str, bytes]]] = []
    for generation, event in history:
        files = image_set({7: {BASE - 8 * MIB: noise(20 * PAGE, 32), **generation}})
        parents = [snapshot for snapshot, _ in saved]
        if event == "memory is short":
            take_memory(kept, 0, PAGE)
        if event == "given up":
            with repository.begin([parent.id for parent in parents[-1:]], kept=kept) as writer:
                writer.add_images("images", image_set({7: {BASE: noise(40 * PAGE, 33)}}))
        saved.append((save(repository, files, kept, *(parents[:1] if event == "went back" else parents[-1:])), files))
    for snapshot, files in saved:
        check(repository, snapshot, files)


def test_of_the_parent_only_what_lies_under_changed_pages_is_read(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, kept, changed = noise(9 * MIB, 1), KeptPrints(), [5, 1100, 1101, 2303]
    first = save(repository, image_set({7: {BASE: data}}), kept)
    files = image_set({7: {BASE: change(data, *(page * PAGE + 8 for page in changed))}})
    read = pages_read(monkeypatch)
    forbid_sidecars(monkeypatch)
    second = save(repository, files, kept, first)
    assert read == changed
    check(repository, second, files)
    moved = image_set({7: {BASE: data[: 7 * MIB], BASE + 64 * MIB: data[7 * MIB :]}})  # the last leaf has no twin
    third = save(repository, moved, kept, second)
    assert sorted(read[len(changed) :]) == changed[:3]
    check(repository, third, moved)


def test_an_unchanged_image_reads_nothing_of_its_parent_and_stores_nothing(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, files = KeptPrints(), image_set({7: {BASE: noise(5 * MIB, 2) + bytes(MIB)}})
    first = save(repository, files, kept)
    read = pages_read(monkeypatch)
    forbid_sidecars(monkeypatch)
    before = repository.stats().pack_bytes
    second = save(repository, files, kept, first)
    assert not read
    assert repository.stats().pack_bytes - before < 1000
    check(repository, second, files)


def test_what_the_kernel_took_is_not_taken_for_zeros(repository: Repository) -> None:
    kept = KeptPrints()
    data = noise(MIB, 3)
    first = save(repository, image_set({7: {BASE: data}}), kept)
    take_memory(kept)
    assert all(kept.get(leaf) is None for leaf in kept._places)
    files = image_set({7: {BASE: bytes(MIB // 2) + data[MIB // 2 :]}})
    check(repository, save(repository, files, kept, first), files)


def test_another_repository_has_fingerprints_of_its_own(repository: Repository, tmp_path: Path) -> None:
    kept, files = KeptPrints(), image_set({7: {BASE: noise(MIB, 4)}})
    save(repository, files, kept)
    with Repository.init(tmp_path / "other") as other:
        kept.begin(expand_key(other.directory.secret()))
        assert not kept._places
        first = save(other, files, kept)
        assert kept._places
        changed = image_set({7: {BASE: change(files["pages-1.img"], 7 * PAGE)}})
        check(other, save(other, changed, kept, first), changed)

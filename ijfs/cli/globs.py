"""Patterns for names: `ijfs rm 'agent-*'`. No name of a branch, tag or program may hold `*`, `?` or `[`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from ijfs.cli import text
from ijfs_engine.errors import UnknownNameError


def is_pattern(word: str) -> bool:
    """Whether a word stands for any number of names."""
    return any(c in word for c in "*?[")


def expanded(words: Sequence[str], known: Callable[[], Iterable[str]]) -> list[str]:
    """The words, each once; patterns as the known names that they fit, agent-2 before agent-10. UnknownNameError for a
    pattern that fits none: a slip must not look like work that is done."""
    if not any(map(is_pattern, words)):
        return list(dict.fromkeys(words))
    names = sorted(known(), key=text.natural)
    found: dict[str, None] = {}
    for word in words:
        fitting = [name for name in names if fnmatchcase(name, word)] if is_pattern(word) else [word]
        if not fitting:
            raise UnknownNameError(f"no name fits the pattern '{word}'")
        found.update(dict.fromkeys(fitting))
    return list(found)

"""How long each step of a save or a restore takes: one clock for each. Made by keeper/save.py and restore.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

OnPhase = Callable[[str], None]
"""Told the name of each phase as it begins; may be called in any thread."""


class Clock:
    """Seconds by phase. Phases follow one another; one that comes again adds to itself."""

    def __init__(self, on_phase: OnPhase) -> None:
        self.phases: dict[str, float] = {}
        self._on_phase = on_phase
        self._name: str | None = None
        self._began = 0.0

    def begin(self, name: str, *, silent: bool = False) -> None:
        """End the phase that runs and begin the next. `silent`: nobody is told."""
        self.end()
        self._name, self._began = name, time.monotonic()
        if not silent:
            self._on_phase(name)

    def end(self) -> None:
        """End the phase that runs, if one does."""
        if self._name is not None:
            self.phases[self._name] = self.phases.get(self._name, 0.0) + time.monotonic() - self._began
            self._name = None

    def divide(self, name: str, first: str, seconds: float) -> None:
        """Give the beginning of a phase that has ended a name of its own."""
        part = min(seconds, self.phases.get(name, 0.0))
        divided: dict[str, float] = {}
        for phase, whole in self.phases.items():
            divided |= {first: part, name: whole - part} if phase == name else {phase: whole}
        self.phases = divided

    def split(self, name: str, parts: Mapping[str, float], names: Sequence[str]) -> None:
        """Give those of `names` that `parts` has measured of a phase that has ended places of their own after it; it
        keeps what is left, so that phases add up."""
        if name not in self.phases:
            return
        found = {part: parts[part] for part in names if part in parts}
        rest = max(0.0, self.phases[name] - sum(found.values()))
        divided: dict[str, float] = {}
        for phase, seconds in self.phases.items():
            divided |= {name: rest, **found} if phase == name else {phase: seconds}
        self.phases = divided

"""Phases of a save or restore: what is told apart adds up to what was measured."""

from __future__ import annotations

import time

from ijfs.live.checkpoint.phases import Clock


def test_parts_of_a_phase_get_places_of_their_own_and_the_sum_stays() -> None:
    clock = Clock(lambda name: None)
    for name in ("gpu", "dump", "gpu back"):
        clock.begin(name)
        time.sleep(0.02)
    clock.end()
    whole = sum(clock.phases.values())
    parts = {"gpu_lock": 0.001, "gpu_checkpoint": 0.01, "gpu_restore": 0.005, "gpu_unlock": 9.0}
    clock.split("gpu", parts, ("gpu_lock", "gpu_checkpoint"))
    assert list(clock.phases) == ["gpu", "gpu_lock", "gpu_checkpoint", "dump", "gpu back"]
    assert abs(sum(clock.phases.values()) - whole) < 1e-9
    clock.split("gpu back", parts, ("gpu_restore", "gpu_unlock"))
    assert clock.phases["gpu back"] == 0.0, "never less than nothing"
    clock.split("commit", parts, ("gpu_lock",))
    assert "commit" not in clock.phases

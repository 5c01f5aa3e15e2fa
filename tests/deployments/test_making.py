"""From what is asked for to what is deployed: an engine's profile, what is given over it, and names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ijfs.deployments.engines import vllm_arguments
from ijfs.deployments.making import specified
from ijfs.live.errors import CommandError
from ijfs.live.model.hooks import check_hooks, request_of
from ijfs.live.model.records import Hooks, HostPort


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_engine_is_put_to_sleep_around_saves_and_its_controls_are_closed(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = specified("m", ["org/model", "--served-model-name", "short"], engine_name=engine)
    assert spec.stateless
    assert spec.program.gpu
    assert spec.program.argv[-2:] == ("--served-model-name", "short")
    check_hooks(spec.program.hooks)
    hooks = spec.program.hooks
    for line in (*hooks.before_save, *hooks.after_save, *hooks.after_restore):
        request = request_of(line)
        assert request is not None
        assert request.target.split("?")[0] in spec.hidden, line
        assert request.port == spec.inside


def test_vllm_compiles_into_a_folder_that_the_next_start_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = specified("m", ["org/model"], engine_name="vllm")
    (folder,) = spec.program.bind
    assert Path(folder).is_dir()
    assert spec.program.env["VLLM_CACHE_ROOT"].startswith(folder)
    asked = request_of(spec.verify)
    assert asked is not None
    assert json.loads(asked.body)["model"] == "org/model"


def test_what_is_given_wins_over_the_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    hooks = Hooks(ready=("http://127.0.0.1:8000/health",))
    spec = specified("m", ["org/model"], engine_name="vllm", hooks=hooks, env={"VLLM_CACHE_ROOT": "/c"}, gpus=["1"])
    assert spec.program.hooks == hooks
    assert spec.program.env["VLLM_CACHE_ROOT"] == "/c"
    assert specified("m", ["x"], engine_name="vllm", gpu_memory=8, gpus=["0", "1"]).needs == {"gpu:0": 8, "gpu:1": 8}


def test_a_port_is_reached_at_its_own_number_unless_another_was_chosen() -> None:
    assert specified("w", ["server"], port=HostPort(8000)).port == 8000
    assert specified("w", ["server"], port=HostPort(8000, 9000, "0.0.0.0")).port == 9000
    with pytest.raises(CommandError, match="which port"):
        specified("w", ["server"])
    with pytest.raises(CommandError, match="no engine"):
        specified("w", ["server"], engine_name="other")


def test_vllms_own_words_say_where_it_is_reached_and_what_it_takes() -> None:
    words = ["--port=9000", "--host", "0.0.0.0", "-tp", "2", "--pipeline-parallel-size=3", "--max-model-len", "4096"]
    called = vllm_arguments(words)
    assert (called.host, called.port, called.gpus, called.utilization) == ("0.0.0.0", 9000, 6, 0.9)
    assert called.others == ("-tp", "2", "--pipeline-parallel-size=3", "--max-model-len", "4096")
    assert vllm_arguments([]) == ("", 8000, 1, 0.9, ())
    assert vllm_arguments(["--gpu-memory-utilization", "0.15"]).utilization == 0.15


@pytest.mark.parametrize(
    "words", [["--port", "http"], ["--port", "0"], ["-tp", "0"], ["--gpu-memory-utilization", "x"]]
)
def test_a_word_of_vllms_that_is_no_number_is_refused(words: list[str]) -> None:
    with pytest.raises(CommandError, match="number"):
        vllm_arguments(words)

"""What is known of inference servers: how vLLM and SGLang are started, drained, put to sleep and asked.

vllm      sleep mode, level 1: weights go to host memory, the KV cache is let go of, so that no snapshot holds it.
          Its development endpoints are needed for that (`/sleep`, `/wake_up`), and closed to clients.
sglang    `/release_memory_occupation` and `/resume_memory_occupation`, under --enable-memory-saver
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ijfs.live.errors import CommandError
from ijfs.live.model.records import Hooks
from ijfs_engine.errors import StorageError

PORT = 8000
"""Where an engine listens inside its sandbox."""

READY_S = 1800.0
"""How long a first start may take: kernels are compiled, and a large model's weights come from a disk."""


_COMPILED = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "PYTHONPYCACHEPREFIX": "pyc",  # 2,400 files of an installation that has none took 0.9 s of each restore
}


class Engine(NamedTuple):
    """How one engine is kept: its command, variables, hooks, the paths that clients must not ask for, and a request
    whose answer is always the same."""

    argv: tuple[str, ...]
    env: dict[str, str]
    hooks: Hooks
    hidden: tuple[str, ...]
    verify: str
    caches: dict[str, str]
    """Variable → directory in the engine's folder of this machine (`cache_folder`): what it compiles is there for the
    next start, is in no snapshot, and need not be put back by a restore."""


def engine(name: str, model: str, arguments: Sequence[str] = (), *, python: str = sys.executable) -> Engine:
    """What is known of `vllm` or `sglang` with that model and further arguments of its own. CommandError for another
    name."""
    if name not in _ENGINES:
        raise CommandError(
            f"there is no engine `{name}`", hint=f"{' or '.join(_ENGINES)}, or give a command after `--`"
        )
    return _ENGINES[name](model, tuple(arguments), python)


class VllmArguments(NamedTuple):
    """What of vLLM's command line is said to ijfs, and the words that are left for vLLM."""

    host: str
    """Where it is to be reached; "": at this machine alone."""
    port: int
    gpus: int
    utilization: float
    """The share of each GPU's memory that it takes, 0 to 1."""
    others: tuple[str, ...]


def vllm_arguments(words: Sequence[str]) -> VllmArguments:
    """Read `vllm serve`'s arguments, with vLLM's defaults. CommandError for a number that is none."""
    sizes = [
        _number(words, option, short, 1)
        for option, short in (
            ("--tensor-parallel-size", "-tp"),
            ("--pipeline-parallel-size", "-pp"),
            ("--data-parallel-size", "-dp"),
        )
    ]
    port = _number(words, "--port", "", PORT)
    if not 0 < port < 1 << 16 or min(sizes) < 1:
        raise CommandError("a port is a number from 1 to 65535, and a parallel size is 1 or more")
    return VllmArguments(
        host=_value(words, "--host") or "",
        port=int(port),
        gpus=int(math.prod(sizes)),
        utilization=_number(words, "--gpu-memory-utilization", "", 0.9),
        others=_without(words, ("--host", "--port")),
    )


def _number(words: Sequence[str], option: str, short: str, default: float) -> float:
    text = _value(words, option) or (_value(words, short) if short else None)
    if text is None:
        return default
    try:
        return float(text)
    except ValueError:
        raise CommandError(f"{option} is a number, not `{text}`") from None


def _without(words: Sequence[str], options: Sequence[str]) -> tuple[str, ...]:
    """The words but for these options and their values."""
    left, skipped = [], False
    for word in words:
        if not skipped and word not in options and word.partition("=")[0] not in options:
            left.append(word)
        skipped = not skipped and word in options
    return tuple(left)


def cache_folder(name: str) -> Path:
    """Where an engine's caches are on this machine; made where it is not there. StorageError."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ijfs" / "engines" / name
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError.of(f"cannot make {home}", error) from error
    return home


def _vllm(model: str, arguments: tuple[str, ...], python: str) -> Engine:
    here = f"http://127.0.0.1:{PORT}"
    served = _value(arguments, "--served-model-name") or model
    one = json.dumps({"model": served, "prompt": "1", "max_tokens": 1, "temperature": 0})
    eight = json.dumps(
        {"model": served, "prompt": "1 2 3", "max_tokens": 8, "temperature": 0, "logprobs": 1, "ignore_eos": True}
    )
    return Engine(
        argv=(
            *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", model),
            *("--host", "127.0.0.1", "--port", str(PORT), "--enable-sleep-mode", *arguments),
        ),
        env={"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"},
        hooks=Hooks(
            before_save=(f"POST {here}/sleep?level=1",),
            after_save=(f"POST {here}/wake_up",),
            after_restore=(f"POST {here}/wake_up",),
            # /health is right long before the first token can come.
            ready=(f"POST {here}/v1/completions {one}",),
            ready_s=READY_S,
        ),
        hidden=(
            *("/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/reset_prefix_cache", "/reset_mm_cache"),
            *("/server_info", "/start_profile", "/stop_profile", "/pause", "/resume", "/scale_elastic_ep"),
            *("/load_lora_adapter", "/unload_lora_adapter", "/update_weights", "/init_weight_transfer_engine"),
        ),
        verify=f"POST {here}/v1/completions {eight}",
        caches={"VLLM_CACHE_ROOT": "vllm", **_COMPILED},
    )


def _sglang(model: str, arguments: tuple[str, ...], python: str) -> Engine:
    here = f"http://127.0.0.1:{PORT}"
    one = json.dumps({"text": "1", "sampling_params": {"max_new_tokens": 1, "temperature": 0}})
    return Engine(
        argv=(
            *(python, "-m", "sglang.launch_server", "--model-path", model),
            *("--host", "127.0.0.1", "--port", str(PORT), "--enable-memory-saver", *arguments),
        ),
        env={},
        hooks=Hooks(
            before_save=(f"POST {here}/release_memory_occupation {{}}",),
            after_save=(f"POST {here}/resume_memory_occupation {{}}",),
            after_restore=(f"POST {here}/resume_memory_occupation {{}}",),
            ready=(f"POST {here}/generate {one}",),
            ready_s=READY_S,
        ),
        hidden=(
            *("/release_memory_occupation", "/resume_memory_occupation", "/flush_cache", "/update_weights_from_disk"),
            *("/update_weights_from_distributed", "/update_weights_from_tensor", "/start_profile", "/stop_profile"),
        ),
        verify=f"POST {here}/generate {one}",
        caches=_COMPILED,
    )


def _value(arguments: Sequence[str], option: str) -> str | None:
    """What an option of the engine's was given, if it was."""
    for at, word in enumerate(arguments):
        if word == option and at + 1 < len(arguments):
            return arguments[at + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


_ENGINES = {"vllm": _vllm, "sglang": _sglang}

"""What a request passes before it is answered: keys, limits, repeats. Without a server and without root."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from starlette.responses import Response

from ijfs.serve.errors import ApiError
from ijfs.serve.idempotency import Repeats
from ijfs.serve.keys import Keys, path_in
from ijfs.serve.limits import Limits, require_room
from ijfs.serve.telemetry import Telemetry


def test_a_key_is_kept_as_its_hash(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    key = Keys(path).add("alice", sandboxes=3)
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    running = Keys(path)
    found = running.find(key)
    assert found is not None
    assert (found.name, found.sandboxes) == ("alice", 3)
    assert running.find("") is None
    assert running.find(key[:-1]) is None
    Keys(path).remove("alice")
    assert running.find(key) is None, "a server that runs reads the file again"


def test_a_key_has_so_many_calls_and_sandboxes(tmp_path: Path) -> None:
    keys = Keys(path_in(tmp_path))
    keys.add("alice", sandboxes=2, calls=1)
    (key,) = keys.all()
    limits = Limits()
    with limits.call(key), pytest.raises(ApiError) as refused, limits.call(key):
        pass
    assert (refused.value.status, refused.value.response().headers["should-retry"]) == (429, "true")
    with limits.call(key):
        pass
    require_room(key, 1, 1)
    with pytest.raises(ApiError, match="has 1 sandboxes, and may have 2"):
        require_room(key, 1, 2)


def test_a_repeated_call_is_done_once_and_a_failed_one_again() -> None:
    async def main() -> None:
        repeats, done = Repeats(), []

        async def call() -> Response:
            done.append(len(done))
            await asyncio.sleep(0)
            if len(done) == 1:
                raise ApiError(503, "not yet")
            return Response(f"the answer {len(done)}")

        with pytest.raises(ApiError, match="not yet"):
            await repeats.once("alice", "k", b"{}", call)
        both = await asyncio.gather(*(repeats.once("alice", "k", b"{}", call) for _ in range(2)))
        assert [answer.body for answer in both] == [b"the answer 2"] * 2
        assert (await repeats.once("bob", "k", b"{}", call)).body == b"the answer 3"
        with pytest.raises(ApiError, match="another request"):
            await repeats.once("alice", "k", b"[]", call)

    asyncio.run(main())


def test_phases_are_seen_by_operators() -> None:
    telemetry = Telemetry()
    with telemetry.work("save") as work:
        work.phases({"freeze": 0.02, "store": 0.2})
    with telemetry.request("POST sandboxes") as asked:
        asked.answered(201)
    text = telemetry.text().decode()
    assert 'ijfs_phase_seconds_count{phase="freeze",verb="save"} 1.0' in text
    assert 'ijfs_requests_total{call="POST sandboxes",status="201"} 1.0' in text


def test_a_request_its_work_and_its_phases_are_spans_in_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """With OpenTelemetry's own SDK in the process, which is where its users put it."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    telemetry = Telemetry()
    with telemetry.request("POST sandboxes") as asked, telemetry.work("save") as work:
        work.phases({"freeze": 0.02, "store": 0.2, "total": 0.22})
        asked.answered(201)
    freeze, store, save, request = exporter.get_finished_spans()
    assert [span.name for span in (freeze, store, save, request)] == [
        "save freeze",
        "save store",
        "save",
        "POST sandboxes",
    ]
    assert freeze.parent == store.parent == save.context
    assert save.parent == request.context
    assert request.parent is None
    assert (freeze.end_time - freeze.start_time, store.start_time) == (20_000_000, freeze.end_time)
    assert dict(request.attributes) == {"http.response.status_code": 201}

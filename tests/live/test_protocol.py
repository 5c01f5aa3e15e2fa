"""What crosses a keeper's sockets: the same lines as ever, whatever version is at the other end."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from ijfs.live.errors import ProtocolError, error_fields
from ijfs.live.model import guest_protocol, protocol
from ijfs.live.model.records import InstanceInfo, InstanceSpec, SaveResult
from ijfs_engine.errors import IjfsError

SPEC = InstanceSpec(name="n", argv=("true",))

REQUESTS: list[tuple[str, protocol.Arguments[Any], dict[str, Any]]] = [
    ("start", protocol.StartArguments(spec=SPEC), {"again": False}),
    ("restore", protocol.RestoreArguments(snapshot="main", gpus=("0",)), {"snapshot": "main", "gpus": ["0"]}),
    ("adopt", protocol.AdoptArguments(), {}),
    ("status", protocol.StatusArguments(), {}),
    ("save", protocol.SaveArguments(message="m", notebook=b"abc"), {"message": "m", "notebook": "YWJj", "wait": True}),
    ("wait_save", protocol.WaitSaveArguments(number=3), {"number": 3}),
    ("wait_memory", protocol.WaitMemoryArguments(), {}),
    ("watch", protocol.WatchArguments(documents=True), {"documents": True}),
    ("give", protocol.GiveArguments(ticket="t", document=b"abc"), {"ticket": "t", "document": "YWJj"}),
    ("notebook", protocol.NotebookArguments(path="/n.ipynb"), {"path": "/n.ipynb"}),
    ("signal", protocol.SignalArguments(number=2), {"number": 2}),
    ("park", protocol.ParkArguments(), {}),
    ("wake", protocol.WakeArguments(), {}),
    ("stop", protocol.StopArguments(timeout_s=1.5), {"timeout_s": 1.5, "force": False}),
]


def test_every_verb_has_a_request_here() -> None:
    assert {verb for verb, _, _ in REQUESTS} == set(protocol.VERBS)


@pytest.mark.parametrize(("verb", "arguments", "fields"), REQUESTS, ids=[verb for verb, _, _ in REQUESTS])
def test_a_request_is_one_line_with_the_names_of_its_verb(
    verb: str, arguments: protocol.Arguments[Any], fields: dict[str, Any]
) -> None:
    line = protocol.encode_request(7, arguments)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    request = json.loads(line)
    assert (request["id"], request["verb"]) == (7, verb)
    assert request["args"].items() >= fields.items()
    assert protocol.decode_request(line).arguments() == arguments


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        (b'{"id":1,"verb":"adopt"}', protocol.AdoptArguments()),
        (b'{"id":1,"verb":"status","args":null}', protocol.StatusArguments()),
        (b'{"id":1,"verb":"stop","args":{"timeout_s":0}}', protocol.StopArguments(timeout_s=0.0)),
        (b'{"id":1,"verb":"save","args":{"message":"m","not yet":1}}', protocol.SaveArguments(message="m")),
        (b'{"id":1,"verb":"restore","args":{"snapshot":"s"},"more":2}', protocol.RestoreArguments(snapshot="s")),
    ],
)
def test_missing_fields_have_defaults_and_unknown_ones_are_passed_over(
    line: bytes, arguments: protocol.Arguments[Any]
) -> None:
    assert protocol.decode_request(line).arguments() == arguments


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "no request"),
        (b"[]", "no request"),
        (b'{"id":1,"verb":7}', "no request"),
        (b'{"id":1,"verb":"dance"}', "knows no verb `dance`"),
        (b'{"id":1,"verb":"restore"}', "`restore` does not take these arguments: .*`snapshot`"),
        (b'{"id":1,"verb":"signal","args":{"number":"2"}}', "`signal` does not take these arguments: .*number"),
        (b'{"id":1,"verb":"save","args":[]}', "`save` does not take these arguments"),
    ],
)
def test_a_request_of_another_shape_is_refused_with_a_sentence(line: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        protocol.decode_request(line).arguments()


@pytest.mark.parametrize(
    ("event", "wire"),
    [
        (protocol.PhaseBegan("dump"), {"kind": "phase", "name": "dump"}),
        (protocol.BytesDone("ingest", 1, 2), {"kind": "progress", "name": "ingest", "done": 1, "total": 2}),
        (protocol.Notice("look"), {"kind": "notice", "text": "look"}),
    ],
)
def test_events_say_what_kind_they_are(event: protocol.Event, wire: dict[str, Any]) -> None:
    line = protocol.encode_event(4, event)
    assert json.loads(line) == {"id": 4, "event": wire}
    assert protocol.decode_keeper_line(line).known_event() == event


def test_an_event_that_only_a_newer_keeper_knows_is_passed_over() -> None:
    answer = protocol.decode_keeper_line(b'{"id":4,"event":{"kind":"weather","text":"rain"}}')
    assert answer.known_event() is None
    assert not answer.is_reply


def test_replies_and_errors_come_back_as_what_they_were() -> None:
    info = InstanceInfo(name="n", kind="command", status="running", argv=("true",), cwd="/")
    answer = protocol.decode_keeper_line(protocol.encode_reply(2, info))
    assert answer.is_reply
    assert protocol.decode_reply(protocol.StatusArguments(), answer.ok) == info
    nothing = protocol.encode_reply(3, None)
    assert json.loads(nothing) == {"id": 3, "ok": {}}
    assert protocol.decode_reply(protocol.SignalArguments(number=1), protocol.decode_keeper_line(nothing).ok) is None
    error = error_fields(IjfsError("no", hint="try"))
    assert protocol.decode_keeper_line(protocol.encode_error(None, error)).error == error


def test_a_reply_to_something_else_is_refused() -> None:
    info = InstanceInfo(name="n", kind="command", status="running", argv=("true",), cwd="/")
    with pytest.raises(ProtocolError):
        protocol.decode_reply(protocol.SaveArguments(), msgspec.Raw(msgspec.json.encode(info)))
    assert protocol.VERBS["save"].reply is SaveResult


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (b'{"verb": "save", "nonce": "n", "message": "m", "wait": false}', guest_protocol.GuestSave("n", "m", False)),
        (b'{"verb": "status"}', guest_protocol.GuestStatus()),
        (b'{"verb": "log", "later": 1}', guest_protocol.GuestLog()),
        (b'{"verb": "cell", "dry": true, "every_s": 3}', guest_protocol.GuestCell(every_s=3.0, dry=True)),
        (b'{"verb": "hooks", "port": 4000}', guest_protocol.GuestHooks(4000)),
    ],
)
def test_a_guests_requests_are_read_as_their_verbs_have_them(
    line: bytes, request_: guest_protocol.GuestRequest
) -> None:
    assert guest_protocol.decode_request(line) == request_


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"7", b'{"verb": 7}', b'{"verb": "hooks"}', b'{"verb": "hooks", "port": []}', b"\xff"]
)
def test_a_guests_request_of_another_shape_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        guest_protocol.decode_request(line)


def test_a_guests_unknown_verb_is_named() -> None:
    with pytest.raises(IjfsError, match="the guest port knows no verb `dance`"):
        guest_protocol.decode_request(b'{"verb": "dance"}')


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (guest_protocol.SaveAnswer("pending"), {"ok": {"state": "pending"}}),
        (
            guest_protocol.SaveAnswer("thawed", "", "lab"),
            {"ok": {"state": "thawed", "snapshot": "", "instance": "lab"}},
        ),
        (
            guest_protocol.SaveAnswer("saved", "ab", "lab", False, ("it cannot be restored",)),
            {
                "ok": {
                    "state": "saved",
                    "snapshot": "ab",
                    "instance": "lab",
                    "verified": False,
                    "warnings": ["it cannot be restored"],
                }
            },
        ),
        (
            guest_protocol.StatusAnswer("lab", "/r/\udcff", None),
            {"ok": {"instance": "lab", "repository": "/r/\udcff", "snapshot": None}},
        ),
        (
            guest_protocol.LogAnswer(
                (guest_protocol.LoggedSnapshot("ab", ("cd",), 7, "m", "python", 5, 4),),
                {"main": "ab"},
                {},
                "ab",
                "/r",
                9,
                (guest_protocol.LoggedProgram("lab", "ab"),),
            ),
            {
                "ok": {
                    "snapshots": [
                        {
                            "id": "ab",
                            "parents": ["cd"],
                            "created_ns": 7,
                            "message": "m",
                            "program": "python",
                            "size": 5,
                            "added": 4,
                        }
                    ],
                    "branches": {"main": "ab"},
                    "tags": {},
                    "here": "ab",
                    "repository": "/r",
                    "stored": 9,
                    "live": [{"name": "lab", "snapshot": "ab"}],
                }
            },
        ),
        (guest_protocol.CellAnswer(), {"ok": {"note": None}}),
        (guest_protocol.HooksAnswer(), {"ok": {}}),
        (IjfsError("no", hint="why"), {"error": error_fields(IjfsError("no", hint="why"))}),
    ],
)
def test_an_answer_to_a_program_is_one_line_also_of_a_path_that_is_no_utf_8(
    answer: guest_protocol.GuestAnswer | IjfsError, said: dict[str, Any]
) -> None:
    line = guest_protocol.encode_answer(answer)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == said

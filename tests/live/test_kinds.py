"""What kind of machine or container this is, told by what is found; docs/places.md says the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ijfs.live.checks.result import CheckResult
from ijfs.live.machine import kinds
from ijfs.live.machine.kinds import Facts, kind_of

PLACES = Path(__file__).resolve().parents[2] / "docs/places.md"
SAYS = "from ijfs.live.machine import kinds; print(kinds.kind_of(kinds.facts()).name)"

FOUND = {
    Facts(): "bare metal",
    Facts(virtual=True): "virtual machine",
    Facts(virtual=True, all_rights=False): "virtual machine",
    Facts(virtual=True, all_rights=False, needed_rights=False): "confined service",
    Facts(machine=False): "privileged container",
    Facts(machine=False, virtual=True, all_rights=False): "container with what is needed",
    Facts(machine=False, all_rights=False, needed_rights=False): "managed container",
    Facts(machine=False, all_rights=False, needed_rights=False, filtered=True): "managed container",
    Facts(machine=False, filtered=True): "filtered container",
    Facts(root=False, all_rights=False, needed_rights=False): "ordinary user",
    Facts(nested=True): "user namespace",
    Facts(nested=True, root=False, machine=False): "user namespace",
    Facts(checkpoints=False, machine=False): "kernel without checkpoints",
}


@pytest.mark.parametrize(("facts", "name"), FOUND.items())
def test_each_kind_is_told_by_its_facts(facts: Facts, name: str) -> None:
    assert kind_of(facts).name == name
    assert {kind.name for kind in kinds.KINDS} == set(FOUND.values())


@pytest.mark.root
@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("unshare -r", "user namespace"),
        ("setpriv --reuid 65534 --clear-groups", "ordinary user"),
        (
            "setpriv --bounding-set=-sys_ptrace --inh-caps=-sys_ptrace unshare --pid --fork --mount-proc",
            "managed container",
        ),
    ],
)
def test_kinds_that_this_machine_can_make_are_found_in_them(command: str, name: str) -> None:
    done = subprocess.run(
        [*command.split(), sys.executable, "-c", SAYS], capture_output=True, text=True, check=False, cwd="/"
    )
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no such namespace can be made here: {done.stderr.strip()}")
    assert done.stdout.strip() == name, done.stderr


def test_the_worst_check_decides_a_need() -> None:
    found = [
        CheckResult(check="userfaultfd", outcome="warn", evidence="not available", remedy="CONFIG_USERFAULTFD"),
        CheckResult(check="CRIU", outcome="refuse", evidence="there is none", remedy="install it"),
        CheckResult(check="capabilities", outcome="warn", evidence="no CAP_SYS_RESOURCE"),
    ]
    rows = {row.check: row for row in kinds.here(found)}
    assert (rows["save"].outcome, rows["save"].remedy) == ("refuse", "install it")
    assert (rows["run at once"].outcome, rows["mount"].outcome) == ("warn", "ok")


def test_the_page_has_the_table_of_kinds() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PLACES.read_text(), re.MULTILINE)
    shown = [tuple(cell.strip() for cell in row) for row in rows]
    assert [row for row in shown if row[0] in {kind.name for kind in kinds.KINDS}] == [
        (kind.name, kind.told_by, kind.works) for kind in kinds.KINDS
    ]

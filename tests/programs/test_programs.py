"""What people run, each asked by its own client: saved, restored, forked, put back in place; and under CRIU alone.

Every row comes back right, or its save is refused with a sentence that `ijfs doctor NAME` had said before it. What came
of each is kept in .cache/programs, from which tools/programs_page.py writes docs/programs.md.
"""

from __future__ import annotations

from pathlib import Path

import campaign
import msgspec
import pytest
from catalog import CHECKOUT, ENTRIES, Entry

RESULTS = CHECKOUT / ".cache/programs"

pytestmark = [pytest.mark.programs, pytest.mark.root, pytest.mark.criu, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_it_comes_back_everywhere_or_is_refused_before(entry: Entry, tmp_path: Path) -> None:
    row = campaign.run(entry, tmp_path)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{entry.name}.json").write_bytes(msgspec.json.encode(row))
    if row.skipped:
        pytest.skip(row.skipped)
    assert row.good(), row

"""docs/programs.md from what `make test-programs` has seen last (.cache/programs), with the date and the versions.

Called by `make test-programs` when its tests have run. Rows that were not run this time stand as they were seen last.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / ".cache/programs"
PAGE = CHECKOUT / "docs/programs.md"
RIGHT = "✓"
STEPS = ("save", "original", "restore", "fork", "in_place")

HEAD = """# Programs

<!-- Written by `make test-programs`; edit tools/programs_page.py instead. -->
What people run, each asked by its own client. Every program counts how often it was asked, and says something else
where what it holds is not as it was:

- *save*: it is saved while its client uses it. *goes on*: the original answers as if nothing had been.
- *restored*, lazily, beside the original; *forked*, two copies of the live one, which go on by themselves; *in place*:
  the original goes back to what was saved.
- *CRIU alone*: the same program, outside ijfs, by `criu dump` and `criu restore` as root, with `--tcp-established
  --ext-unix-sk --file-locks --link-remap`, once.

A save that is refused names the reason and leaves the program as it was; `ijfs doctor NAME` names it before.
"""

FOOT = """
{date}: {kernel}, CRIU {criu}, {cores} cores, {rights}. `make test-programs` runs it again ([testing.md](testing.md)).
"""


def main() -> int:
    """Write the page. 1 where nothing was run."""
    rows = [json.loads(path.read_bytes()) for path in sorted(RESULTS.glob("*.json"))]
    if not rows:
        print("nothing was run: make test-programs", file=sys.stderr)
        return 1
    PAGE.write_text(page(rows, footing()))
    return 0


def page(rows: list[dict[str, Any]], foot: str) -> str:
    """The whole page."""
    lines = [
        HEAD,
        "| program | version | save | goes on | restored | forked | in place | frozen | memory | CRIU alone |",
        "|---|---|---|---|---|---|---|---:|---:|---|",
    ]
    lines += [_line(row) for row in rows if not row["skipped"]]
    lines += _refusals(rows)
    skipped = [f"- {row['what']}: {row['skipped']}" for row in rows if row["skipped"]]
    if skipped:
        lines += ["", "Not run:", *skipped]
    return "\n".join(lines) + "\n" + foot


def _line(row: dict[str, Any]) -> str:
    marks = [_mark(row[step]) for step in STEPS]
    frozen = f"{row['frozen_s'] * 1000:.0f} ms" if row["frozen_s"] else ""
    memory = f"{row['image_bytes'] / 1e6:.0f} MB" if row["image_bytes"] else ""
    criu = row["criu"] if row["criu"] == RIGHT else f"✗ {_cell(row['criu'])}"
    return f"| {row['what']} | {row['version']} | {' | '.join(marks)} | {frozen} | {memory} | {criu} |"


def _mark(said: str) -> str:
    if said in (RIGHT, ""):
        return said
    return "refused" if said.startswith("refused") else "✗"


def _refusals(rows: list[dict[str, Any]]) -> list[str]:
    """What was said where not all is right."""
    found = []
    for row in rows:
        said = next((row[step] for step in STEPS if row[step] not in (RIGHT, "")), "")
        if said:
            found.append(f"- {row['what']}: {_cell(said)}.")
    return ["", *found] if found else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").rstrip(".")[:300]


def footing() -> str:
    """Where and when."""
    sys.path.insert(0, str(CHECKOUT))
    from ijfs.live.checks import privilege
    from ijfs.live.criu import command

    newest = max(path.stat().st_mtime for path in RESULTS.glob("*.json"))
    date = datetime.datetime.fromtimestamp(newest, tz=datetime.UTC).strftime("%Y-%m-%d")
    rights = "root" if privilege.may_save_other_users() else "root without CAP_SYS_RESOURCE"
    criu = ".".join(map(str, command.version(command.find())))
    kernel = f"Linux {platform.release().split('-')[0]}, Debian's packages and PyPI's"
    return FOOT.format(date=date, kernel=kernel, criu=criu, cores=os.cpu_count(), rights=rights)


if __name__ == "__main__":
    sys.exit(main())

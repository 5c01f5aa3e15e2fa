#!/usr/bin/env python3
"""Draws the pictures of docs/internals/pictures: an SVG beside each source. `make pictures` calls it.

    tools/pictures.py            draw what is missing or older than its source (graphviz has to be installed)
    tools/pictures.py --check    say which SVG was not drawn from its source as it is now; `make check` calls this

A `.dot` source is a graph; graphviz places it. A `.timeline` source is a table of lanes and rows, placed here:

    lane NAME | title | subtitle      one column
    row LABEL                         time goes on; the label stands at the left
    NAME: text | file                 a box in this row and that lane; the file is set smaller
    NAME*3: text                      the same, three rows high
    NAME? text                        text without a box
    NAME! text                        a box that stands out
    A > B                             an arrow from lane A to lane B, in this row
    band TEXT, end                    a coloured band over the rows between the two

Each SVG begins with the digest of its source, so that a check needs no graphviz.
"""

import hashlib
import re
import subprocess
import sys
from html import escape
from pathlib import Path

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "internals" / "pictures"

GUTTER, LANE, BAND, LINE, PAD = 92, 168, 30, 15, 8
FONT = "Arial, Helvetica, Liberation Sans, sans-serif"
BOX, LOUD = ("#dbe9f6", "#7a9cc0"), ("#fbd9d3", "#c96a5a")


def head(source: Path) -> str:
    """The first line of the SVG that was drawn from this source."""
    return (
        f"<!-- drawn by `make pictures` from {source.name}, {hashlib.sha256(source.read_bytes()).hexdigest()[:32]} -->"
    )


def width(text: str, size: float) -> float:
    """How wide Arial sets this, nearly."""
    wide = {**dict.fromkeys("ijlt.,:;'|!()[]/ fr-I", 0.31), **dict.fromkeys("mwMW@%→", 0.88)}
    return size * sum(wide.get(letter, 0.69 if letter.isupper() else 0.57) for letter in text)


def wrap(text: str, room: float, size: float) -> list[str]:
    """The text in lines that fit."""
    lines = [""]
    for word in re.findall(r"\s*[^\s/]*/?", text.strip()):  # a path may break behind a slash
        if lines[-1] and width(lines[-1] + word, size) > room:
            lines.append(word.strip())
        else:
            lines[-1] += word
    return lines


class Timeline:
    """One `.timeline` source, read and drawn."""

    def __init__(self, text: str) -> None:
        self.lanes: dict[str, tuple[str, str]] = {}
        self.rows: list[str] = []
        self.boxes: list[tuple[int, int, str, str, list[tuple[str, bool]]]] = []  # row, rows, lane, kind, lines
        self.arrows: list[tuple[int, str, str]] = []
        self.bands: list[tuple[int, int, str]] = []
        for line in text.splitlines():
            if line.strip() and not line.startswith("#"):
                self._read(line.strip())
        self.heights = [LINE + PAD] * len(self.rows)
        for row, span, _, _, lines in sorted(self.boxes, key=lambda box: box[1]):
            missing = len(lines) * LINE + 2 * PAD - sum(self.heights[row : row + span])
            if missing > 0:
                self.heights[row + span - 1] += missing
        self.tops = [sum(self.heights[:row]) + 10 * row for row in range(len(self.rows) + 1)]

    def _read(self, line: str) -> None:
        now = len(self.rows) - 1
        if line.startswith("lane "):
            name, title, subtitle = (part.strip() for part in line[5:].split("|"))
            self.lanes[name] = title, subtitle
        elif line.split()[0] == "row":
            self.rows.append(line[3:].strip())
        elif line.startswith("band "):
            self.bands.append((now + 1, -1, line[5:]))
        elif line == "end":
            first, _, text = self.bands.pop()
            self.bands.append((first, now + 1, text))
        elif arrow := re.fullmatch(r"(\w+) > (\w+)", line):
            self.arrows.append((now, arrow[1], arrow[2]))
        elif box := re.fullmatch(r"(\w+)(?:\*(\d+))?([:?!]) (.*)", line):
            parts = box[4].split("|")
            lines = [(text, False) for text in wrap(parts[0], LANE - 26, 12)]
            lines += [(text, True) for part in parts[1:] for text in wrap(part, LANE - 26, 10.5)]
            self.boxes.append((now, int(box[2] or 1), box[1], box[3], lines))
        else:
            raise SystemExit(f"not understood: {line}")

    def draw(self) -> str:
        """The SVG's lines, without their head."""
        top = 62
        wide, high = GUTTER + LANE * len(self.lanes) + BAND, top + self.tops[-1] + 12
        at = {name: GUTTER + LANE * number for number, name in enumerate(self.lanes)}
        out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}"'
            f' font-family="{FONT}" font-size="12">',
            f'<rect width="{wide}" height="{high}" fill="white"/>',
            '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 8 4 0 8z" fill="#444"/></marker>',
        ]
        for first, last, text in self.bands:
            y, bottom = top + self.tops[first] - 5, top + self.tops[last] - 5
            out.append(f'<rect x="4" y="{y}" width="{wide - 8}" height="{bottom - y}" rx="6" fill="#fdf0e3"/>')
            x, middle = wide - 13, (y + bottom) / 2
            out.append(
                f'<text x="{x}" y="{middle}" text-anchor="middle" font-weight="bold" fill="#a8551f"'
                f' transform="rotate(90 {x} {middle})">{escape(text)}</text>'
            )
        for name, (title, subtitle) in self.lanes.items():
            x = at[name]
            out.append(f'<line x1="{x}" y1="8" x2="{x}" y2="{high - 8}" stroke="#cccccc" stroke-dasharray="2 4"/>')
            out.append(_text(x + LANE / 2, 24, title, bold=True) + _text(x + LANE / 2, 41, subtitle, small=True))
        for row, label in enumerate(self.rows):
            for number, line in enumerate(wrap(label, GUTTER - 14, 12)):
                y = top + self.tops[row] + PAD + 11 + LINE * number
                out.append(f'<text x="10" y="{y}" font-style="italic" fill="#555555">{escape(line)}</text>')
        for row, span, name, kind, lines in self.boxes:
            out += self._box(at[name], top + self.tops[row], self._height(row, span), kind, lines)
        for row, one, other in self.arrows:
            y = top + self.tops[row] + 16
            left, right = (
                (at[one] + LANE - 7, at[other] + 6) if at[one] < at[other] else (at[one] + 7, at[other] + LANE - 6)
            )
            out.append(f'<line x1="{left}" y1="{y}" x2="{right}" y2="{y}" stroke="#444" marker-end="url(#tip)"/>')
        return "\n".join([*out, "</svg>", ""])

    def _height(self, row: int, span: int) -> float:
        return self.tops[row + span] - self.tops[row] - 10

    @staticmethod
    def _box(x: float, y: float, height: float, kind: str, lines: list[tuple[str, bool]]) -> list[str]:
        fill, edge = LOUD if kind == "!" else BOX
        out = []
        if kind != "?":
            out.append(
                f'<rect x="{x + 7}" y="{y}" width="{LANE - 14}" height="{height}" rx="5"'
                f' fill="{fill}" stroke="{edge}"/>'
            )
        middle = y + (height - LINE * len(lines)) / 2 + 11.5
        out += [_text(x + LANE / 2, middle + LINE * at, line, small=small) for at, (line, small) in enumerate(lines)]
        return out


def _text(x: float, y: float, text: str, *, bold: bool = False, small: bool = False) -> str:
    look = ' font-weight="bold"' if bold else ' font-size="10.5" fill="#555555"' if small else ""
    return f'<text x="{x}" y="{y}" text-anchor="middle"{look}>{escape(text)}</text>'


def drawn(source: Path) -> str:
    """A source's SVG."""
    if source.suffix == ".timeline":
        return f"{head(source)}\n{Timeline(source.read_text()).draw()}"
    svg = subprocess.run(["dot", "-Tsvg", str(source)], capture_output=True, check=True, text=True).stdout
    svg = re.sub(r"(?s)^.*?(?=<svg)|<!--.*?-->\n?", "", svg)
    return f"{head(source)}\n{svg}"


def main() -> int:
    """The exit code: 1 where a check found an old picture."""
    sources = sorted(path for path in PICTURES.iterdir() if path.suffix in (".dot", ".timeline"))
    old = [
        source
        for source in sources
        if not (svg := source.with_suffix(".svg")).exists() or svg.read_text().split("\n", 1)[0] != head(source)
    ]
    for source in old:
        if "--check" in sys.argv:
            print(f"{source.with_suffix('.svg').name} was not drawn from {source.name} as it is now: make pictures")
        else:
            source.with_suffix(".svg").write_text(drawn(source))
            print(f"drawn        {source.with_suffix('.svg').name}")
    return int(bool(old) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())

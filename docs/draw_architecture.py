"""Bring ``docs/architecture.md`` up to date: its picture of the rooms, its table of them, and its line numbers.

Run it after a change of structure: ``python docs/draw_architecture.py``. A test fails where the page is out of date.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "pictures" / "rooms.svg"
VOCABULARY = "vocabulary"
"""What the modules of the vocabulary count as, together: one room."""
WORDS = ("files", "numerics", "objectives", "seeding", "selection", "spec", "types")
DOORS = ("__init__", "__main__", "cli")
"""Where users come in: no rooms."""
PLACE = re.compile(r"`([\w/]+\.py):\d+` `([\w.]+)`")
"""A place in a walk: a file, a line, and the name that is defined there."""
TABLE = re.compile(r"(<!-- rooms -->\n).*?(<!-- end of rooms -->)", re.DOTALL)

Arrows = dict[str, set[str]]
"""Which rooms each room imports."""


def rooms() -> list[str]:
    """Return the packages of metarl, and the vocabulary."""
    packages = sorted(path.parent.name for path in (ROOT / "metarl").glob("*/__init__.py"))
    return [VOCABULARY, *(name for name in packages if name not in WORDS)]


def arrows() -> Arrows:
    """Return which rooms each room imports, read from the source."""
    found: Arrows = {room: set() for room in rooms()}
    for path in sorted((ROOT / "metarl").rglob("*.py")):
        room = _room(path.relative_to(ROOT / "metarl").with_suffix("").parts[0])
        if room is not None:
            found[room] |= {other for name in _imported(path) if (other := _room(name)) not in (None, room)}
    return found


def _room(name: str) -> str | None:
    if name in WORDS:
        return VOCABULARY
    return None if name in DOORS else name


def _imported(path: Path) -> Iterator[str]:
    """Yield the first part, below metarl, of whatever a module imports from metarl."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "metarl":
            yield from (alias.name for alias in node.names if alias.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("metarl."):
            yield (node.module or "").split(".")[1]


def floors(found: Arrows) -> dict[str, int]:
    """Return how high each room lies: one floor above the highest room that it imports."""
    known: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in known:
            known[room] = 1 + max((floor(other) for other in found[room]), default=-1)
        return known[room]

    return {room: floor(room) for room in found}


def direct(found: Arrows) -> Arrows:
    """Leave out arrows to what another imported room imports in turn: the picture shows the way there."""

    def reached(room: str) -> set[str]:
        return found[room] | {far for other in found[room] for far in reached(other)}

    return {
        room: {other for other in others if not any(other in reached(between) for between in others - {other})}
        for room, others in found.items()
    }


def told(found: Arrows) -> str:
    """Return all arrows as text, which the picture carries along."""
    return "; ".join(f"{room} imports {', '.join(sorted(others)) or 'none'}" for room, others in sorted(found.items()))


def draw(found: Arrows, path: Path) -> None:
    """Draw the rooms, each floor a row, and the arrows that are not implied by others."""
    heights = floors(found)
    rows = [sorted(room for room in heights if heights[room] == floor) for floor in range(max(heights.values()) + 1)]
    places = {
        room: ((index + 0.5 - len(row) / 2) * 2.2, float(floor))
        for floor, row in enumerate(rows)
        for index, room in enumerate(row)
    }
    figure = Figure(figsize=(7.5, 0.62 * len(rows) + 0.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for room, others in sorted(direct(found).items()):
        for other in sorted(others):
            arrow = {"arrowstyle": "-|>", "color": "#8a8a8a", "shrinkA": 11, "shrinkB": 11}
            axes.annotate("", places[other], places[room], arrowprops=arrow)
    for room, (across, up) in places.items():
        box = {"boxstyle": "round,pad=0.4", "facecolor": "#e8f0fa", "edgecolor": "#0072B2"}
        axes.text(across, up, room, ha="center", va="center", fontsize=10, bbox=box)
    widest = max(map(len, rows))
    axes.set_xlim(-1.1 * widest - 0.4, 1.1 * widest + 0.4)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    with mpl.rc_context({"svg.hashsalt": "rooms", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Description": told(found)})


def table() -> str:
    """Return the rooms as a table: the first line of what each says of itself."""
    lines = ["| room | what it is for |", "|---|---|"]
    for room in rooms()[1:]:
        doc = ast.get_docstring(ast.parse((ROOT / "metarl" / room / "__init__.py").read_text(encoding="utf-8"))) or ""
        lines.append(f"| `metarl/{room}` | {' '.join(doc.partition(chr(10) * 2)[0].split())} |".replace("``", "`"))
    return "\n".join(lines) + "\n"


def line_of(file: str, name: str) -> int:
    """Return the line that defines a name, such as ``Run.iterate``. Raises ValueError where there is none."""
    node: ast.AST = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for part in name.split("."):
        inside = [child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == part]
        if not inside:
            raise ValueError(f"{file} does not define {name}")
        node = inside[-1]
    return int(getattr(node, "lineno", 0))


def page(text: str) -> str:
    """Return the page with its table and its line numbers as they are now."""
    text = TABLE.sub(lambda match: match[1] + table() + match[2], text)
    return PLACE.sub(lambda match: f"`{match[1]}:{line_of(match[1], match[2])}` `{match[2]}`", text)


if __name__ == "__main__":
    draw(arrows(), PICTURE)
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PICTURE} and {PAGE}")

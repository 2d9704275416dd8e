"""The suite's results as Markdown: printed while it runs, and set into the documentation from its file.

    python tests/benchmarks/tables.py suite.json [--page docs/performance.md]

replaces what stands between ``<!-- suite: PART -->`` and ``<!-- end -->`` on the page, and draws growth.png beside it.
"""

import argparse
import json
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
BUSY = 0.05
"""Share of the processors that strangers may take before a row is called disturbed."""
AXES = ("tasks", "inner steps", "width of both hidden layers")
ITERATION_PARTS = ("sampling", "adaptation", "gradient", "conjugate gradient", "line search", "rest")


def markdown(part: str, found: Any) -> str:
    """Return the tables of a part; of ``machine``, what the numbers depend on."""
    if part == "machine":
        return machine(found)
    if part == "limits":
        return limits(found)
    if part == "ceilings":
        return ceilings(found)
    if part == "growth":
        return growth(found)
    tables = [f"**{name}**\n\n{contest(part, group['rows'])}" for name, group in found.items()]
    if part == "iteration":
        tables.append(split(found))
    return "\n\n".join(tables)


def machine(found: dict[str, Any]) -> str:
    told = found["machine"]
    date = datetime.fromisoformat(found["date"])
    chip = f"{told['chip']} ({told['chip_memory_gib']} GiB, CUDA {told['cuda']}), " if "chip" in told else ""
    commit = f"commit {told['revision']}; " if told["revision"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items() if name != "metarl")
    return (
        f"Measured on {date.day} {date:%B %Y} on {chip}{told['processor']}, {told['cpus']} cores, "
        f"{told['memory_gib']} GiB, {told['torch_threads']} threads; {commit}Python "
        f"{told['python']}, {versions}; by `{found['command']}`."
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None) -> str:
    """Three figures, and no more zeros than they need."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def mebibytes(value: float | None) -> str:
    return "" if value is None else f"{value / 2**20:,.0f}"


def contest(part: str, rows: dict[str, dict[str, Any]]) -> str:
    """One group: rates and shares of the simulator's for sampling, else times and how many times metarl's they are."""
    unit = {"sampling": "steps per second", "iteration": "seconds", "few-shot": "milliseconds"}[part]
    ratio = "share of the simulator" if part == "sampling" else "times metarl's"
    head = ["", unit, ratio, "peak MiB", "imports' MiB"] + (["threads"] if part == "few-shot" else [])
    lines = []
    for name, row in rows.items():
        missing = row.get("absent") or ("failed: " + row["failed"] if "failed" in row else None)
        if missing:
            lines.append([name, *[""] * (len(head) - 2), missing])
            continue
        line = [name, number(measured(part, row)), number(compared(part, row))]
        line += [mebibytes(row["peak_bytes"]), mebibytes(row["start_bytes"])]
        lines.append(line + ([str(row.get("threads", row["told"].get("threads", "")))] if part == "few-shot" else []))
    return f"{table(head, lines)}{disturbed(rows)}"


def measured(part: str, row: dict[str, Any]) -> float:
    if part == "sampling":
        return row["numbers"]["steps"] / row["seconds"]
    return row["seconds"] * (1000 if part == "few-shot" else 1)


def compared(part: str, row: dict[str, Any]) -> float | None:
    if "ratio" not in row:
        return None
    return 1 / row["ratio"] if part == "sampling" else row["ratio"]


def disturbed(rows: dict[str, dict[str, Any]]) -> str:
    """Name the rows during which strangers used the processors."""
    busy = {name: row["strangers"] for name, row in rows.items() if row.get("strangers", 0) > BUSY}
    told = ", ".join(f"{name} {share:.0%}" for name, share in busy.items())
    return f"\n\nTaken by other programs meanwhile: {told}." if told else ""


def split(groups: dict[str, Any]) -> str:
    """The parts of metarl's iteration, a column for each group."""
    watched = {name: group["rows"].get("metarl, its parts watched", {}) for name, group in groups.items()}
    columns = {name: row["numbers"] for name, row in watched.items() if row.get("numbers")}
    rows = [[part, *(number(numbers[part]) for numbers in columns.values())] for part in ITERATION_PARTS]
    tried = ["(tries of the line search)", *(number(numbers["tries"]) for numbers in columns.values())]
    return f"**Parts of metarl's iteration, in seconds**\n\n{table(['', *columns], [*rows, tried])}"


def ceilings(groups: dict[str, Any]) -> str:
    group = groups["ceilings"]
    if "numbers" not in (row := group["rows"]["ceilings"]):
        return f"failed: {row.get('failed')}"
    rates, sizes = row["numbers"], group["sizes"]
    shapes = {
        f"gemm_{width}": f"{batch} of ({rows} x {width}) ({width} x {width})" for batch, rows, width in sizes["batches"]
    }
    rows = [[f"matrix product, {sizes['square']} x {sizes['square']}", f"{number(rates['gemm'] / 1e9)} GFLOP/s"]]
    rows += [[f"matrix products, {shape}", f"{number(rates[name] / 1e9)} GFLOP/s"] for name, shape in shapes.items()]
    rows += [["copy in memory, read and written", f"{number(rates['copy'] / 1e9)} GB/s"]]
    rows += [["one small operation after another", f"{number(rates['operator'] * 1e6)} microseconds each"]]
    rows += [["to read a number back", f"{number(rates['round_trip'] * 1e6)} microseconds"]]
    return f"{table(['', 'measured'], rows)}{disturbed(group['rows'])}"


def limits(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "What limits them is not told where ceilings, or what they are set against, were not measured."
    names = ("matrix products", "memory", "operations one after another", "the simulator")
    lines = [
        [
            row["row"],
            number(row["operations"] / 1e9),
            number(row["bytes"] / 1e9),
            number(row["seconds"]),
            *(f"{row['shares'][name]:.0%}" if name in row["shares"] else "" for name in names),
        ]
        for row in rows
    ]
    return table(["", "GFLOP", "GB", "seconds", *(f"of {name}" for name in names)], lines)


def growth(groups: dict[str, Any]) -> str:
    """How time and memory grow along each axis, from the point where the axes cross."""
    tables = []
    for axis, points in axes(groups).items():
        families = sorted({family for family, _ in points})
        values = sorted({value for _, value in points})
        head = [axis, *(f"{family}, {what}" for family in families for what in ("ms", "MiB"))]
        rows = [
            [str(value), *(cell for family in families for cell in cells(points.get((family, value))))]
            for value in values
        ]
        tables.append(table(head, rows))
    return "\n\n".join(tables) + disturbed({name: group["rows"]["metarl"] for name, group in groups.items()})


def cells(row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None or "seconds" not in row:
        return "", ""
    return number(1e3 * row["seconds"]), mebibytes(used(row))


def used(row: dict[str, Any]) -> float:
    """Memory that the iterations took, over what the process held before."""
    return row["peak_bytes"] - row["start_bytes"]


def axes(groups: dict[str, Any]) -> dict[str, dict[tuple[str, int], dict[str, Any]]]:
    """Rows by axis, family and value on the axis: those that lie where the other axes cross it."""
    base = next(iter(groups.values()))["sizes"]["base"]
    found: dict[str, dict[tuple[str, int], dict[str, Any]]] = {name: {} for name in AXES}
    for group in groups.values():
        point, family = coordinates(group["sizes"]), group["sizes"].get("family", "sinusoid")
        for index, name in enumerate(AXES):
            if all(point[other] == base[other] for other in range(3) if other != index):
                found[name][family, point[index]] = group["rows"]["metarl"]
    return found


def coordinates(sizes: dict[str, Any]) -> tuple[int, int, int]:
    return sizes["tasks"], sizes["steps"], sizes["hidden"][0]


def replaced(page: str, part: str, text: str) -> str:
    """Set a part's tables between its marks. Raises ValueError where the page has none."""
    block = re.compile(rf"(<!-- suite: {part} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not block.search(page):
        raise ValueError(f"the page has no place for {part}: expected lines <!-- suite: {part} --> and <!-- end -->")
    return block.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    found = json.loads(options.file.read_text(encoding="utf-8"))
    page = options.page.read_text(encoding="utf-8")
    for part, groups in {"machine": found, **found["parts"], "limits": found["limits"]}.items():
        page = replaced(page, part, markdown(part, groups))
    options.page.write_text(page, encoding="utf-8")
    if "growth" in found["parts"]:
        from growth_picture import draw

        draw(axes(found["parts"]["growth"]), options.page.parent / "pictures" / "growth.png")


if __name__ == "__main__":
    main()

"""Lists of the image files of each split, as data sets publish them: .csv with two columns, or .txt."""

import csv
import io
import os
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from metarl_plugins import trees

COLUMNS = (("filename", "label"), ("image_name", "class_name"))
"""Names of the columns of files and classes, in mini-ImageNet's lists and in easyfsl's."""
DELIMITERS = ",;\t"
MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Byte-order marks, with their encodings."""


class Row(NamedTuple):
    """One line of a list."""

    number: int
    file: str
    label: str


def read(root: Path, table: Path) -> dict[Path, str]:
    """Return the image files that a list names, with the class of each.

    Images are looked up in root and in its folder ``images``, directly or in a folder named after the class.

    Raises:
        ValueError: the list cannot be read, or a file is missing or has two classes. It names list and row.
    """
    folder = root / "images" if (root / "images").is_dir() else root
    if table.suffix.lower() == ".csv":
        return _found(root, folder, table, _table_rows(table))
    lines = [(number, line.strip()) for number, line in enumerate(_text(table).splitlines(), start=1) if line.strip()]
    if any(_class_folder(root, line) for _, line in lines):
        return _of_classes(root, table, lines)
    return _found(root, folder, table, _line_rows(root, table, lines))


def _text(table: Path) -> str:
    contents = table.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if contents.startswith(mark)), "utf-8")
    try:
        return contents.decode(encoding)
    except UnicodeDecodeError as error:
        row = contents[: error.start].count(b"\n") + 1
        told = f"{table}, row {row}: byte 0x{contents[error.start]:02x} is no {encoding.partition('-sig')[0].upper()}"
        raise ValueError(f"{told}; save the file as UTF-8") from error


def _table_rows(table: Path) -> Iterator[Row]:
    text = _text(table)
    head = next(iter(text.splitlines()), "")
    header, delimiter = next(csv.reader([head]), []), ","
    for delimiter in DELIMITERS:
        told = [name.strip().casefold() for name in next(csv.reader([head], delimiter=delimiter), [])]
        columns = next((pair for pair in COLUMNS if set(pair) <= set(told)), None)
        if columns:
            break
    else:
        wanted = ", or ".join(" and ".join(pair) for pair in COLUMNS)
        raise ValueError(f"{table} has the columns {header}: expected {wanted}")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    next(rows)
    try:
        for cells in rows:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                yield _row(table, rows.line_num, told, cells, columns)
    except csv.Error as error:
        raise ValueError(f"{table}, row {rows.line_num}: {error}") from error


def _row(table: Path, number: int, header: Sequence[str], cells: Sequence[str], columns: tuple[str, str]) -> Row:
    if any(cells[len(header) :]):
        raise ValueError(f"{table}, row {number}: {len(cells)} cells under {len(header)} columns; quote commas")
    values = dict(zip(header, cells, strict=False))
    for column in columns:
        if not values.get(column):
            raise ValueError(f"{table}, row {number}: the {column} is missing")
    return Row(number, values[columns[0]], unicodedata.normalize("NFC", values[columns[1]]))


def _line_rows(root: Path, table: Path, lines: Sequence[tuple[int, str]]) -> Iterator[Row]:
    """Read lines that name a file in a folder, its class, or a file and its class."""
    find = _finder(root)
    for number, line in lines:
        above = Path(line).parent.name
        if above and above.casefold() not in trees.CONTAINERS and find(line, ""):
            yield Row(number, line, class_name(above))
            continue
        parts = line.replace(",", " ").rsplit(maxsplit=1)
        if len(parts) < 2:
            wanted = "a folder of images, CLASS/FILE, or a file and its class"
            raise ValueError(f"{table}, row {number}: {line!r} is none of {wanted}")
        yield Row(number, parts[0].strip(), class_name(parts[1]))


def _class_folder(root: Path, name: str) -> Path | None:
    return next((path for path in (root / "images" / name, root / name) if path.is_dir()), None)


def _of_classes(root: Path, table: Path, lines: Sequence[tuple[int, str]]) -> dict[Path, str]:
    found, passed = dict[Path, str](), trees.Passed()
    for number, line in lines:
        folder = _class_folder(root, line)
        files = trees.look(folder, passed).everything() if folder else []
        if not files:
            raise ValueError(f"{table}, row {number}: there is no folder {line} that holds images")
        found |= dict.fromkeys(files, class_name(line))
    passed.tell(root)
    return found


def class_name(name: str) -> str:
    """Return a class name in the form that is compared: accents composed, surrounding blanks removed."""
    return unicodedata.normalize("NFC", name.strip())


def _found(root: Path, folder: Path, table: Path, rows: Iterator[Row]) -> dict[Path, str]:
    find = _finder(root)
    first: dict[Path, Row] = {}
    absent: list[Row] = []
    for row in rows:
        path = find(row.file, row.label)
        if path is None:
            absent.append(row)
        elif first.setdefault(path, row).label != row.label:
            other = first[path]
            told = f"{row.file} is of {row.label!r}, and in row {other.number} of {other.label!r}"
            raise ValueError(f"{table}, row {row.number}: {told}")
    if absent:
        count = len(absent) + len(first)
        told = f"{table} names {absent[0].file}, which {folder} lacks"
        raise ValueError(f"{told}; {len(absent)} of {count} are missing (the first in row {absent[0].number})")
    outside = [row for path, row in first.items() if not path.is_relative_to(root)]
    if outside:
        told = f"{table} names {len(outside)} files outside of {root}, such as {outside[0].file} in row"
        warnings.warn(f"{told} {outside[0].number}: they are read where they are", stacklevel=2)
    return {path: row.label for path, row in first.items()}


Find = Callable[[str, str], Path | None]


def _finder(root: Path) -> Find:
    """Return a function that finds a file by name and class. Paths inside root are relative to it, others absolute."""
    images = root / "images"
    places: list[Callable[[str, str], Path]] = [
        lambda name, label: images / label / name,
        lambda name, label: images / name,
        lambda name, label: root / label / name,
        lambda name, label: root / name,
    ]
    base = os.path.abspath(root)

    def find(name: str, label: str) -> Path | None:
        for spelt in _spellings(name):
            for place in places:
                path = place(spelt, label)
                if path.is_file():
                    places.remove(place)  # the next file is found in the same way
                    places.insert(0, place)
                    full = Path(os.path.abspath(path))
                    return root / full.relative_to(base) if full.is_relative_to(base) else full
        return None

    return find


def _spellings(name: str) -> Iterator[str]:
    """Yield the spellings of a name on other operating systems."""
    yield name
    for other in dict.fromkeys(
        unicodedata.normalize(form, slashes)
        for slashes in (name, name.replace("\\", "/"))
        for form in ("NFC", "NFD")
    ):  # fmt: skip
        if other != name:
            yield other

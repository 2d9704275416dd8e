"""Data as they come: tables of pandas and the like, and labelled data sets of torch and Hugging Face, as families."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl.fewshot.classification import NWayKShot
from metarl.fewshot.regression import TableRegression
from metarl.files import expanded, read_table

MISSING = ("", "na", "nan", "null", "none", "?")
"""What cells of a file say where a number is missing, in any case; ``?`` is OpenML's."""
INPUTS, LABELS = (
    ("image", "img", "input", "inputs", "pixel_values", "text"),
    ("label", "labels", "fine_label", "target"),
)
"""Names of columns that are looked for where none are given."""
Columns = dict[str, Any]


def from_table(
    table: Any, group: str, target: str | Sequence[str], inputs: Sequence[str] | None = None, **options: Any
) -> TableRegression:
    """Return a family of a table with a column that tells each row's group: each group is a task.

    Args:
        table: A ``pandas.DataFrame``, a ``datasets.Dataset``, a mapping of columns, or anything else with ``columns``
            and ``table[name]``; or the path of a CSV file with a line of names.
        group: The column of the groups, of numbers or of texts.
        target: The column to predict, or several.
        inputs: The columns to predict from; by default all others.
        options: Those of ``TableRegression``, such as ``shots=(5, 20)`` or ``missing="mean"``. ``splits`` names groups
            by their keys.

    Raises:
        ValueError: there is no such column, or one of the inputs or targets holds something else than numbers; or for
            the reasons of ``TableRegression``.
    """
    columns = _columns(table)
    targets = [target] if isinstance(target, str) else list(target)
    chosen = [name for name in columns if name not in (group, *targets)] if inputs is None else list(inputs)
    if absent := [name for name in (group, *targets, *chosen) if name not in columns]:
        raise ValueError(f"there is no column {absent[0]!r}: the table has {', '.join(map(str, columns))}")
    if not chosen:
        raise ValueError(f"no column is left to predict {', '.join(targets)} from")
    if group in (*targets, *chosen):
        raise ValueError(f"the column {group!r} tells the groups: it cannot be an input or a target, too")
    named = {"columns": tuple(chosen)} | options
    return TableRegression(_stacked(columns, chosen), _stacked(columns, targets), _keys(columns[group]), **named)


def from_dataset(dataset: Any, inputs: str | None = None, label: str | None = None, **options: Any) -> NWayKShot:
    """Return a family of a labelled data set: N-way K-shot classification of its items.

    Args:
        dataset: Any ``torch.utils.data.Dataset`` with a length whose items are ``(input, label)``, as torchvision's
            are; or a ``datasets.Dataset``, whose items are dictionaries. Inputs are images of Pillow, arrays or
            tensors of one shape; labels are numbers or texts. All items are read once, and held in memory.
        inputs: With dictionaries, the name of the inputs; by default ``image`` or its like.
        label: With dictionaries, the name of the labels; by default ``label`` or its like.
        options: Those of ``NWayKShot``, such as ``ways=(5, 20)``. ``classes`` names labels by their numbers.

    Raises:
        ValueError: the data set has no length, no such column, or inputs of several shapes; or for the reasons of
            ``NWayKShot``.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(f"{type(dataset).__name__} has no length: expected a data set whose items have numbers")
    if not len(dataset):
        raise ValueError("the data set holds no items")
    pairs = _pairs(dataset, inputs, label)
    images, labels = _read(pairs, len(dataset))
    numbers, names = _classes(labels)
    return NWayKShot(images, numbers, **{"names": names or _names(dataset, label)} | options)


def _columns(table: Any) -> Columns:
    if isinstance(table, str | Path):
        return _of_file(expanded(table))
    names = getattr(table, "column_names", None)  # datasets, pyarrow
    if names is None and isinstance(table, Mapping):
        return dict(table)
    names = getattr(table, "columns", None) if names is None else names
    if names is None or not hasattr(table, "__getitem__"):
        raise ValueError(
            f"a {type(table).__name__} is no table: expected a DataFrame, a datasets.Dataset, a mapping of columns, or "
            "the path of a CSV file"
        )
    if isinstance(names, Mapping):
        raise ValueError(f"the table has the splits {', '.join(names)}: choose one of them, such as table['train']")
    return {name: table[name] for name in names}


def _of_file(path: Path) -> Columns:
    """Return the columns of a CSV file: numbers where all cells are such, or missing, else texts."""
    names, rows = read_table(path, "row")
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ValueError(f"{path} has two columns {twice[0]!r}: rename one")
    return {name: _cells([row[place] for row in rows]) for place, name in enumerate(names)}


def _cells(cells: Sequence[str]) -> Any:
    missing = [cell.casefold() in MISSING for cell in cells]
    try:
        return np.array([np.nan if none else float(cell) for cell, none in zip(cells, missing, strict=True)])
    except ValueError:
        return [None if none else cell for cell, none in zip(cells, missing, strict=True)]


def _stacked(columns: Columns, names: Sequence[str]) -> Tensor:
    """Return columns of numbers as float64, ``[row, column]``; missing ones are nan."""
    stacked = [_numbers(columns[name], name) for name in names]
    if len({len(values) for values in stacked}) > 1:
        counts = ", ".join(str(len(values)) for values in stacked)
        raise ValueError(f"columns have {counts} rows: expected as many in each")
    return torch.from_numpy(np.stack(stacked, axis=1))


def _numbers(column: Any, name: str) -> np.ndarray:
    values = column.to_numpy() if hasattr(column, "to_numpy") else np.asarray(_listed(column))
    if values.dtype.kind in "biuf" and values.ndim == 1:
        return values.astype(np.float64)
    try:
        numbers = np.array([np.nan if _is_missing(one) else one for one in values.tolist()], dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty((0, 0))
    if numbers.ndim != 1 or values.dtype.kind in "mM":
        told = next((one for one in values.tolist() if isinstance(one, str)), values.ravel()[0])
        raise ValueError(
            f"column {name!r} holds something else than numbers, such as {told!r}: leave it out (inputs=[...]), or "
            "make numbers of it"
        )
    return numbers


def _is_missing(value: Any) -> bool:
    return value is None or (type(value).__name__ in ("NAType", "NaTType"))


def _listed(column: Any) -> Any:
    return column if isinstance(column, np.ndarray | Tensor) else list(column)


def _keys(column: Any) -> list[Any]:
    """Return the keys of groups; whole numbers among floats, as files give them, as such."""
    values = column.tolist() if hasattr(column, "tolist") else list(column)
    keys = [None if _is_missing(one) else one for one in values]
    if not all(isinstance(one, float) and (one != one or one.is_integer()) for one in keys):
        return keys
    return [one if one is None or one != one else int(one) for one in keys]


def _pairs(dataset: Any, inputs: str | None, label: str | None) -> Callable[[int], tuple[Any, Any]]:
    """Return what gives the input and the label of an item."""
    first = dataset[0]
    if isinstance(first, Mapping):
        image, named = _named(first, inputs, INPUTS, "inputs"), _named(first, label, LABELS, "label")
        return lambda item: _both(dataset[item], image, named)
    if inputs is not None or label is not None:
        raise ValueError("inputs and label name parts of dictionaries, and the items of this data set are none")
    if not isinstance(first, tuple | list) or len(first) < 2:
        raise ValueError(f"items of the data set are {type(first).__name__}: expected (input, label)")
    return lambda item: _both(dataset[item], 0, 1)


def _both(item: Any, image: Any, label: Any) -> tuple[Any, Any]:
    return item[image], item[label]


def _named(item: Mapping[str, Any], given: str | None, known: Sequence[str], what: str) -> str:
    name = given or next((name for name in known if name in item), None)
    if name is None or name not in item:
        told = f"no column {given!r}" if given else f"none of the columns {', '.join(known)}"
        raise ValueError(f"the data set has {told}: name one of {', '.join(item)} as {what}")
    return name


def _read(pairs: Callable[[int], tuple[Any, Any]], count: int) -> tuple[Tensor, list[Any]]:
    labels, inputs = list[Any](), torch.empty(0)
    for item in _shown(count):
        value, label = pairs(item)
        read = _tensor(value, item)
        if not item:
            inputs = torch.empty((count, *read.shape), dtype=read.dtype)
        if read.shape != inputs.shape[1:] or read.dtype != inputs.dtype:
            ours = f"{inputs.dtype} {tuple(inputs.shape[1:])}"
            raise ValueError(
                f"item {item} of the data set is {read.dtype} {tuple(read.shape)}, and item 0 is {ours}: bring all to "
                "one form, by a transform that resizes and converts them, say"
            )
        inputs[item] = read
        labels.append(label.item() if hasattr(label, "item") else label)
    return inputs, labels


def _shown(count: int) -> Iterator[int]:
    from tqdm import tqdm

    yield from tqdm(range(count), "reading the data set", disable=None, leave=False)


def _tensor(value: Any, item: int) -> Tensor:
    """Return an input as a tensor; an image of Pillow as ``[channel, height, width]`` of uint8."""
    if isinstance(value, Tensor):
        return value
    array = np.array(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the input of item {item} is a {type(value).__name__}, which is no image and no numbers")
    if not (importlib.util.find_spec("PIL") and type(value).__module__.startswith("PIL.")):
        return torch.from_numpy(array)
    if getattr(value, "mode", "") == "P":
        array = np.array(value.convert("RGB"))
    channels = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(channels))


def _classes(labels: Sequence[Any]) -> tuple[Tensor, tuple[str, ...]]:
    """Return the numbers of labels, and the names of those that were texts."""
    if all(isinstance(label, int) for label in labels):
        return torch.tensor(labels), ()
    if not all(isinstance(label, str) for label in labels):
        kinds = sorted({type(label).__name__ for label in labels})
        raise ValueError(f"labels are {', '.join(kinds)}: expected whole numbers, or texts")
    names = sorted(set(labels))
    places = {name: place for place, name in enumerate(names)}
    return torch.tensor([places[label] for label in labels]), tuple(names)


def _names(dataset: Any, label: str | None) -> tuple[str, ...]:
    """Return the names of classes that are numbers, where the data set tells them."""
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        name = label or next((name for name in LABELS if name in features), None)
        return tuple(getattr(features.get(name), "names", None) or ())
    return tuple(map(str, getattr(dataset, "classes", None) or ()))

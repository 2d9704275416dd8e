"""One's own examples: arrays, image files, a folder of class folders, or a table."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarl.fewshot import image_scale, numbers, own_units
from metarl.files import expanded, read_table
from metarl.types import AS_GIVEN, Family, InputScale, ReadsFiles, ScalesInputs, Spec, Units

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What files of images are called; others in a folder of classes are left out."""
COLUMNS = ("filename", "label")
"""Columns of a table of image files."""


class Preparing(NamedTuple):
    """How a user's own inputs become what a learner was trained on."""

    shape: tuple[int, ...]
    """``input_shape`` of the learner."""
    scale: InputScale | None
    """What the family's own inputs are divided by; None where it does not say."""
    family: Family | None
    """Reads files, if it can."""
    units: Units = AS_GIVEN
    """The standard units of what the learner was trained on."""

    def tensor(self, inputs: Any) -> Tensor:
        """Return inputs ``[item, *input_shape]``, ready for the learner, from files or from numbers.

        Raises ValueError for another shape, no inputs, numbers that are not finite, and floats beyond what the
        family's own images have.
        """
        files = as_files(inputs)
        given = self._scaled(_tensor(inputs)) if files is None else self.read(files)
        return self._checked(given if self.units.inputs is None else self.units.inputs.apply(given))

    def read(self, files: Sequence[Path]) -> Tensor:
        """Return inputs from files. Raises ValueError where the run's family does not read any."""
        if not isinstance(self.family, ReadsFiles):
            name = "the run" if self.family is None else type(self.family).__name__
            raise ValueError(f"{name} reads no files such as {files[0]}: give arrays or tensors, or a table of numbers")
        return self.family.read(files)

    def _scaled(self, inputs: Tensor) -> Tensor:
        self._check_shape(inputs)
        if self.scale is None:
            # In float64 at first, where they get other units: large numbers would lose their differences.
            return inputs if self.units.inputs is not None else numbers(inputs, image_scale(inputs, warn=False))
        if not inputs.is_floating_point():
            return numbers(inputs, self.scale.divisor)
        if self.scale.floats:
            return numbers(inputs, self.scale.divisor)
        most = 255 / self.scale.divisor
        if self.scale.divisor != 1 and inputs.isfinite().all() and (inputs.min() < 0 or inputs.max() > most):
            raise ValueError(
                f"inputs of floats range from {inputs.min():g} to {inputs.max():g}, where 0 to {most:g} was expected: "
                "give whole numbers of 0 to 255 (uint8), or scale them"
            )
        return numbers(inputs, 1)

    def _check_shape(self, inputs: Tensor) -> None:
        wanted = ", ".join(("item", *map(str, self.shape)))
        if inputs.ndim != 1 + len(self.shape) or tuple(inputs.shape[1:]) != self.shape:
            given = tuple(inputs.shape)
            last = len(self.shape) == 3 and given[1:] == (*self.shape[1:], self.shape[0])
            hint = "; move the channels to the front: inputs.transpose(0, 3, 1, 2)" if last else ""
            one = "; a single input needs the first axis, too: inputs[None]" if given == self.shape else ""
            raise ValueError(f"inputs have shape {given} where ({wanted}) was expected{hint}{one}")
        if not len(inputs):
            raise ValueError(f"there are no inputs: expected at least one, ({wanted})")

    def _checked(self, inputs: Tensor) -> Tensor:
        self._check_shape(inputs)
        if not inputs.isfinite().all():
            item = int((~inputs.isfinite()).reshape(len(inputs), -1).any(1).nonzero()[0])
            raise ValueError(f"inputs contain numbers that are not finite, first in item {item}")
        return inputs


def preparing(family: Family, spec: Spec) -> Preparing:
    """Return how inputs for a family's learner are prepared."""
    scale = family.input_scale if isinstance(family, ScalesInputs) else None
    return Preparing(tuple(spec.input_shape), scale, family, own_units(family))


def _tensor(inputs: Any) -> Tensor:
    try:
        return numbers_of(inputs)
    except ValueError as error:
        raise ValueError(f"inputs are no numbers: {error}") from error


def numbers_of(values: Any) -> Tensor:
    """Return real numbers as a tensor on the CPU. Raises ValueError for anything else."""
    if isinstance(values, Tensor):
        if values.is_complex():
            raise ValueError(f"they are of type {values.dtype}")
        return values.detach().cpu()
    try:
        array = np.array(values)
    except (TypeError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"they are of type {array.dtype}")
    return torch.from_numpy(array)


def as_files(inputs: Any) -> list[Path] | None:
    """Return a list of files, or None for anything but a list of paths."""
    if isinstance(inputs, str | os.PathLike):
        return [expanded(Path(inputs))]
    if isinstance(inputs, Sequence | np.ndarray) and len(inputs) and isinstance(inputs[0], str | os.PathLike):
        return [expanded(Path(one)) for one in inputs]
    return None


class Given(NamedTuple):
    """Examples of a folder or a table."""

    inputs: Any
    targets: Any


def examples_at(path: Path, spec: Spec) -> Given:
    """Read a folder with a folder for each class, or a table (CSV).

    A table with the columns ``filename`` and ``label`` lists images, which lie beside it or in a folder ``images``. Any
    other has a column for each input number, then one for each target, or one for the class, under a line of names.

    Raises ValueError for anything else, and for a folder or a table without examples.
    """
    if path.is_dir():
        return _in_folders(path, spec)
    if path.suffix.lower() != ".csv":
        raise ValueError(f"{path}: expected a folder with a folder for each class, or a table of type .csv")
    names, rows = read_table(path, "example")
    if set(COLUMNS) <= set(names):
        return _listed(path, names, rows)
    inputs, targets = _numbers(path, names, rows, spec)
    return Given(inputs, targets)


def inputs_at(path: Path, spec: Spec) -> Tensor:
    """Read a table of inputs alone; columns after those of the inputs are left out. Raises ValueError."""
    names, rows = read_table(path, "example")
    size = int(np.prod(spec.input_shape))
    if len(names) < size:
        raise ValueError(f"{path} has {len(names)} columns: expected {size} at least, one for each input number")
    return _floats(path, [row[:size] for row in rows]).reshape(-1, *spec.input_shape)


def _in_folders(root: Path, spec: Spec) -> Given:
    if spec.kind != "classification":
        raise ValueError(f"{root} is a folder: this run predicts values, and reads a table of numbers (.csv)")
    files: list[Path] = []
    targets: list[str] = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))):
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
        if not found:
            raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)}): expected some of its class")
        files += found
        targets += [folder.name] * len(found)
    if not files:
        raise ValueError(f"{root} holds no examples: expected a folder for each class, with images in it")
    return Given(files, targets)


def _listed(path: Path, names: list[str], rows: list[list[str]]) -> Given:
    file, label = (names.index(column) for column in COLUMNS)
    folders = path.parent, path.parent / "images"
    files = [next((folder / row[file] for folder in folders if (folder / row[file]).is_file()), None) for row in rows]
    if None in files:
        raise ValueError(f"{path} names {rows[files.index(None)][file]}, which is not beside it, nor in images")
    return Given(files, [row[label] for row in rows])


def _numbers(path: Path, names: list[str], rows: list[list[str]], spec: Spec) -> Given:
    size = int(np.prod(spec.input_shape))
    rest = 1 if spec.kind == "classification" else spec.output_size
    if len(names) != size + rest:
        raise ValueError(
            f"{path} has {len(names)} columns: expected {size + rest}, {size} of inputs and {rest} of targets (or "
            f"{' and '.join(COLUMNS)}, for images)"
        )
    inputs = _floats(path, [row[:size] for row in rows]).reshape(-1, *spec.input_shape)
    if spec.kind == "classification":
        return Given(inputs, [row[-1] for row in rows])
    return Given(inputs, _floats(path, [row[size:] for row in rows]))


def _floats(path: Path, rows: list[list[str]]) -> Tensor:
    try:
        values = [[float(cell) for cell in row] for row in rows]
    except ValueError as error:
        raise ValueError(f"{path} holds something else than numbers: {error}") from None
    return torch.tensor(values, dtype=torch.get_default_dtype())

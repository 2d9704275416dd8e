"""Pictures of few-shot tasks with what was predicted for them: blue frames are right, orange ones wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from metarl.pictures.plotting import COLOURS, save

RIGHT, WRONG = COLOURS[0], COLOURS[1]
GAP = 0.4
"""Space between support and query pictures, in widths of one."""


def predictions(  # three pairs of arrays
    support: Any,
    support_classes: Any,
    query: Any,
    query_classes: Any,
    predicted: Any,
    path: Path | str,
    names: Sequence[Sequence[str]] | None = None,
    columns: int = 5,
) -> Path:
    """Show the pictures of few-shot tasks, a panel for each task and a row for each class; return the path written.

    Left are support pictures, right query pictures in frames: blue if the predicted class is right, orange with the
    predicted class beside it if not. Arguments are arrays or CPU tensors: pictures ``[task, item, channel, height,
    width]`` in [0, 1] with one channel (ink, drawn black) or three, classes and predicted classes ``[task, item]``;
    classes below 0 are padding.
    ``names`` are those of each task's classes, by default their numbers. At most ``columns`` pictures of a class are
    drawn of each role.

    Raises:
        ValueError: pictures of another shape.
    """
    parts = [np.asarray(values) for values in (support, support_classes, query, query_classes, predicted)]
    if any(images.ndim != 5 or images.shape[2] not in (1, 3) for images in (parts[0], parts[2])):
        raise ValueError(f"expected images [task, item, 1 or 3, height, width], not shape {parts[0].shape}")
    ways = len(np.unique(parts[1][parts[1] >= 0]))
    firsts = [classes[0][classes[0] >= 0] for classes in parts[1:4:2]]
    widths = [min(columns, int(np.unique(classes, return_counts=True)[1].max())) for classes in firsts]
    across, down = min(2, len(parts[0])), -(-len(parts[0]) // 2)
    size = (max(2.4, 0.6 * (sum(widths) + 1)) * across + 0.4, (0.6 * ways + 0.4) * down + 0.5)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes in panels[len(parts[0]) :]:
        axes.set_axis_off()
    for task, axes in enumerate(panels[: len(parts[0])]):
        one = _without_padding([values[task] for values in parts])
        _task(axes, one, [str(number) for number in range(ways)] if names is None else names[task], columns)
        right = int((one[4] == one[3]).sum())
        axes.set_title(f"task {task}: {right} of {len(one[3])} right", fontsize="medium")
    told = "left: support; right: query, blue if right, orange with the predicted class if wrong"
    figure.suptitle(told, fontsize="small")
    return save(figure, path)


def _without_padding(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    support, support_classes, query, query_classes, predicted = parts
    shown, asked = support_classes >= 0, query_classes >= 0
    return [support[shown], support_classes[shown], query[asked], query_classes[asked], predicted[asked]]


def _task(axes: Axes, parts: Sequence[np.ndarray], names: Sequence[str], columns: int) -> None:
    support, support_classes, query, query_classes, predicted = parts
    rows = np.unique(support_classes).tolist()
    start = min(columns, max(int((support_classes == row).sum()) for row in rows)) + GAP
    widest = start
    for height, row in enumerate(rows):
        axes.text(-0.1, height + 0.5, _name(names, int(row)), fontsize=8, ha="right", va="center", parse_math=False)
        for place, image in enumerate(support[support_classes == row][:columns]):
            _image(axes, image, place, height)
        chosen = np.flatnonzero(query_classes == row)[:columns]
        for place, item in enumerate(chosen):
            _image(axes, query[item], start + place, height)
            _frame(axes, start + place, height, predicted[item] == row, _name(names, int(predicted[item])))
        widest = max(widest, start + len(chosen))
    axes.set(xlim=(-0.3, widest + 0.1), ylim=(len(rows), -0.1), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)


def _image(axes: Axes, image: np.ndarray, left: float, top: float) -> None:
    pixels = np.broadcast_to(image if len(image) == 3 else 1 - image, (3, *image.shape[1:])).transpose(1, 2, 0)
    extent = (left + 0.06, left + 0.94, top + 0.94, top + 0.06)
    axes.imshow(pixels.clip(0, 1), interpolation="nearest", extent=extent)


def _frame(axes: Axes, left: float, top: float, right: bool, name: str) -> None:
    colour = RIGHT if right else WRONG
    axes.add_patch(Rectangle((left + 0.05, top + 0.05), 0.9, 0.9, fill=False, edgecolor=colour, linewidth=1.8))
    if not right:
        box = {"facecolor": "white", "alpha": 0.85, "pad": 0.6, "linewidth": 0}
        shown = name if len(name) <= 8 else f"{name[:7]}…"
        where = (left + 0.9, top + 0.88)
        axes.text(*where, shown, color=colour, fontsize=8, ha="right", va="bottom", bbox=box, parse_math=False)


def _name(names: Sequence[str], number: int) -> str:
    """Return a class's name. A network may predict a class that a task with fewer of them has not."""
    return names[number] if number < len(names) else str(number)

"""Few-shot classification of labelled items in one tensor. An episode is drawn as indices into it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor
from torch.utils.weak import WeakIdKeyDictionary

from metarl.fewshot.grouping import SPLITS, Classes, Groups, Sizes, group, row_size
from metarl.fewshot.numbers import check_numbers, fingerprint, image_scale, numbers
from metarl.seeding import Places, stream, uniform
from metarl.selection import drawn_in_whole, overrides, rows_of, selected
from metarl.speed import send
from metarl.types import Batch, Examples, InputScale, Role, Spec, Split, Which, places

Rotations = Literal["none", "train", "all"]
"""Splits in which images rotated by 90, 180 and 270 degrees count as new classes."""

EPISODE = ("ways", "shots", "queries", "train_shots", "test_queries", "train_ways", "rotations")
"""Options of ``NWayKShot`` that families built on it share."""
SHOWN = 4
"""Tasks in a picture."""


@dataclass(frozen=True, eq=False)
class NWayKShot:
    """N-way K-shot classification: the items of a tensor, with labels. Each task has N classes to distinguish.

    A task's classes are drawn from its split, and numbered 0, 1, ..., N - 1 at random. Its support and query items are
    drawn once, when the task is sampled, without overlap. Task parameters: ``classes`` ``[task, way]``, the labels;
    with rotations also ``quarter_turns`` ``[task, way]``, counterclockwise. Descriptors are empty.

    Raises:
        ValueError: an option is out of range, shapes do not agree, or two splits share a class. ``sample`` raises it
            for a split with fewer classes than ways, and for a class with too few items for support and query.
    """

    inputs: Tensor
    """``[item, *shape]``. Images of uint8 are scaled to [0, 1]; other inputs are not scaled."""
    labels: Tensor
    """``[item]``: the class of each item, an integer."""
    ways: int = 5
    """Classes per task."""
    shots: int = 1
    """Support items per class."""
    queries: int | None = None
    """Query items per class in meta-training; by default as many as shots."""
    train_shots: int | None = None
    """Support items per class in meta-training; by default as many as shots. Reptile uses more."""
    test_queries: int | None = None
    """Query items per class in validation and test; by default as many as shots, as in the MAML paper's code."""
    train_ways: int | None = None
    """Classes per task in meta-training; by default as many as ways. Prototypical networks use more."""
    rotations: Rotations = "none"
    """Splits in which square images rotated by 90, 180 and 270 degrees count as new classes: none, train or all. A task
    never contains two rotations of the same class."""
    classes: Classes | None = None
    """The labels of each split; by default a random 64, 16 and 20 % of them (``metarl.fewshot.split_classes``)."""
    names: Sequence[str] = ()
    """Names of the classes 0, 1, ... for error messages; by default their labels."""
    scale: float | None = None
    """Inputs are divided by this; by default 255 for images of uint8 with values above 1, else 1."""
    drop_small: bool = False
    """Leave out classes with fewer items than support and query take. A warning counts them."""

    def __post_init__(self) -> None:
        check_episode(**{name: getattr(self, name) for name in EPISODE})
        check_items(self.inputs, self.labels)
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale={self.scale}: expected a positive number")
        if self.rotations != "none" and (self.inputs.ndim < 3 or self.inputs.shape[-1] != self.inputs.shape[-2]):
            raise ValueError(f"rotations need square images, not inputs of shape {tuple(self.inputs.shape[1:])}")
        self._groups  # noqa: B018  # raises ValueError for wrong labels and splits
        self._scale  # noqa: B018  # warns if it is doubtful
        if self.drop_small:
            self._groups.warn_of_small(self._sizes)

    @property
    def spec(self) -> Spec:
        """Input: an item. Output: one of the ways; a test may use fewer ways than training."""
        return Spec(tuple(self.inputs.shape[1:]), most_ways(self.ways, self.train_ways), "classification")

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> "EpisodeTasks":
        """Sample tasks. Raises ValueError for fewer than one task, and for a split that cannot fill an episode."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        (support, query), ways = self._sizes[split], self._ways(split)
        # Always float64, so that the tasks of a seed do not depend on torch's default dtype.
        size = row_size(ways, support + query)
        numbers = uniform(generator, num_tasks, size + ways, dtype=torch.float64)
        groups, items = self._groups.choose(self._pool(split), ways, support + query, numbers[:, :size])
        parameters = {"classes": self._groups.labels[groups]}
        if self.rotations != "none":
            turns = 4 if self.rotations in ("all", split) else 1
            parameters["quarter_turns"] = (turns * numbers[:, size:]).long()
        return EpisodeTasks(self.inputs, items[..., :support], items[..., support:], parameters, self._scale)

    @property
    def input_scale(self) -> InputScale:
        """What inputs are divided by: floats only if these are floats."""
        return InputScale(self._scale, floats=self.inputs.is_floating_point())

    def check_split(self, split: Split) -> None:
        """Raise ValueError if a split has classes but cannot fill an episode."""
        if len(self._groups.pools[split]):
            self._pool(split)

    def fingerprint(self) -> str:
        """Return a digest of the items and their labels. A run is only used with the data that it was trained on."""
        return fingerprint(self.inputs, self.labels)

    def _ways(self, split: Split) -> int:
        return (split == "train" and self.train_ways) or self.ways

    def _pool(self, split: Split) -> Tensor:
        return self._groups.pool(split, self._ways(split), sum(self._sizes[split]), self.drop_small)

    @cached_property
    def _sizes(self) -> Sizes:
        return episode_sizes(self.shots, self.queries, self.train_shots, self.test_queries)

    @cached_property
    def _scale(self) -> float:
        return image_scale(self.inputs) if self.scale is None else self.scale

    @cached_property
    def _groups(self) -> Groups:
        return group(self.labels, self.classes, self.names)


@dataclass(frozen=True, eq=False)
class EpisodeTasks:
    """Tasks made of labelled items: the positions of each task's support and query items in a tensor."""

    inputs: Tensor  # [item, *shape], the items of all tasks
    support: Tensor  # [task, way, shot] positions in inputs
    query: Tensor  # [task, way, query]
    parameters: dict[str, Tensor]
    scale: float | None = None  # inputs are divided by this; None: by 255 for uint8, else by 1
    places: Places | None = None  # in the whole that these tasks were selected from

    def __init_subclass__(cls) -> None:
        refuse_draw_alone(cls)

    @property
    def descriptors(self) -> Tensor:
        """Empty: ``[task, 0]``."""
        return torch.zeros(len(self.support), 0)

    @property
    def items(self) -> int:
        """Items per task, support and query together."""
        return self.support[0].numel() + self.query[0].numel()

    def draw(self, role: Role, generator: Generator) -> Examples:
        """Return all items of a role in random order. Every draw returns the same items."""
        return next(self.draw_groups(role, generator, len(self.support)))

    def draw_groups(self, role: Role, generator: Generator, size: int) -> Iterator[Examples]:
        """Yield what ``draw`` returns, ``size`` tasks at a time: the images of all tasks may not fit in memory."""
        device = generator.device
        chosen = send(self.support if role == "support" else self.query, device)
        tasks, ways, count = chosen.shape
        order = uniform(generator, self.places or tasks, ways * count).argsort(1)
        targets, items = order // count, chosen.flatten(1).gather(1, order)
        turns = self.parameters.get("quarter_turns")
        quarters = None if turns is None else send(turns, device).gather(1, targets)
        for first in range(0, tasks, size):
            group = slice(first, first + size)
            inputs = gather(self.inputs, items[group])
            if quarters is not None:
                inputs = rotated(inputs, quarters[group])
            yield Examples(inputs=numbers(inputs, self.scale), targets=targets[group])

    def select(self, tasks: Which) -> Any:
        """Return some of the tasks, as ``EpisodeTasks``; they draw what they draw among all of these."""
        return some_of(self, tasks, EpisodeTasks)


def some_of(tasks: Any, which: Which, kind: type) -> Any:
    """Return some tasks made of items at positions ``support`` and ``query``."""
    if overrides(tasks, kind, "draw", "draw_groups"):
        return drawn_in_whole(tasks, which)
    chosen = places(which, len(tasks.support))
    return replace(
        tasks,
        support=tasks.support[chosen],
        query=tasks.query[chosen],
        parameters=rows_of(tasks.parameters, chosen),
        places=selected(tasks.places, which, len(tasks.support)),
    )


def refuse_draw_alone(tasks: type) -> None:
    """Raise TypeError for a subclass that overrides ``draw`` alone: evaluation uses ``draw_groups`` instead."""
    if "draw" in vars(tasks) and "draw_groups" not in vars(tasks):
        raise TypeError(
            f"{tasks.__name__} overrides draw, and evaluation would not use it: override draw_groups instead, which "
            "draw calls"
        )


def episode_sizes(shots: int, queries: int | None, train_shots: int | None, test_queries: int | None) -> Sizes:
    """Return the number of support and query items of each class in each split. Raises ValueError for one below 1."""
    check_counts(shots=shots, queries=queries, train_shots=train_shots, test_queries=test_queries)
    train, test = (train_shots or shots, queries or shots), (shots, test_queries or shots)
    return {split: train if split == "train" else test for split in SPLITS}


def most_ways(ways: int, train_ways: int | None) -> int:
    """Return how many classes a network must distinguish, in meta-training or at test."""
    return max(ways, train_ways or 0)


def check_episode(
    ways: int,
    shots: int,
    queries: int | None,
    train_shots: int | None,
    test_queries: int | None,
    train_ways: int | None,
    rotations: Rotations,
) -> None:
    """Raise ValueError for invalid options of episodes."""
    for name, count in {"ways": ways, "train_ways": train_ways}.items():
        if count is not None and count < 2:
            raise ValueError(f"{name}={count}: a task has at least 2 classes")
    check_counts(shots=shots, queries=queries, train_shots=train_shots, test_queries=test_queries)
    if rotations not in get_args(Rotations):
        raise ValueError(f"rotations={rotations!r}: expected one of {', '.join(get_args(Rotations))}")


def check_counts(**counts: int | None) -> None:
    """Raise ValueError for a count below 1. None is accepted."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name}={count}: expected at least 1")


def check_items(values: Tensor, labels: Tensor, what: str = "inputs and labels", item: str = "item") -> None:
    """Raise ValueError unless both are tensors, each item has a label, and all values are finite.

    Values must also be finite in torch's default dtype. A warning names distinct values that this cast makes equal.
    """
    for found in (values, labels):
        if not isinstance(found, Tensor):
            raise ValueError(f"{what}: found {type(found).__name__}, expected tensors (torch.as_tensor makes them)")
    if labels.ndim != 1 or values.shape[:1] != labels.shape:
        shapes = f"{tuple(values.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"{what} have shapes {shapes}: expected [{item}, *shape] and [{item}]")
    check_numbers(values, what.partition(" ")[0])


def picture(tasks: EpisodeTasks, queries: Sequence[Batch], path: Path) -> Path:
    """Plot the support and query images of the first tasks of an evaluation; return the path.

    It draws these images again, because ``queries`` would load the images of all tasks.
    """
    from metarl.pictures.plotting import episodes

    shown = tasks.select(slice(SHOWN))
    support, query = (shown.draw(role, stream(0, "picture")) for role in get_args(Role))
    return episodes(support.inputs, support.targets, query.inputs, query.targets, path, SHOWN)


def gather(inputs: Tensor, items: Tensor) -> Tensor:
    """Return the inputs ``[item, *shape]`` at positions ``[task, item]``, on the positions' device."""
    source = on_device(inputs, items.device)
    return source.index_select(0, items.flatten()).reshape(*items.shape, *inputs.shape[1:])


_copies = WeakIdKeyDictionary()


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device. All families and tasks of this process share one copy per device."""
    if tensor.device == device:
        return tensor
    if tensor not in _copies:
        _copies[tensor] = {}
    copies: dict[torch.device, Tensor] = _copies[tensor]
    if device not in copies:
        copies[device] = tensor.to(device)
    return copies[device]


def rotated(images: Tensor, quarter_turns: Tensor) -> Tensor:
    """Rotate images ``[task, item, ..., size, size]`` counterclockwise by ``[task, item]`` times 90 degrees."""
    turns = quarter_turns.reshape(*quarter_turns.shape, *[1] * (images.ndim - 2))
    images = torch.where(turns % 2 == 1, images.rot90(1, (-2, -1)), images)
    return torch.where(turns >= 2, images.flip(-2, -1), images)

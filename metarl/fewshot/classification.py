"""Few-shot classification of labelled items that one tensor holds: an episode is an index and a gather."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Generator, Tensor
from torch.utils.weak import WeakIdKeyDictionary

from metarl.fewshot.grouping import SPLITS, Classes, Groups, group
from metarl.fewshot.numbers import check_numbers, image_scale, numbers
from metarl.seeding import stream
from metarl.speed import send
from metarl.types import Batch, Examples, Learner, Role, Spec, Split, State

Rotations = Literal["none", "train", "all"]
"""In which splits images turned by 90, 180 and 270 degrees count as new classes."""

EPISODE = ("ways", "shots", "queries", "train_shots", "test_queries", "train_ways", "rotations")
"""Options of ``NWayKShot`` that families made with it have too."""
SHOWN = 4
"""Tasks that a picture shows."""


@dataclass(frozen=True, eq=False)
class NWayKShot:
    """N-way K-shot classification of the labelled items of a tensor: a task is N classes to tell apart.

    A task's classes are drawn from those of its split and numbered 0, 1, ..., N - 1 at random; which items of them are
    support and which are query is drawn too, once, and they share none. Task parameters: ``classes`` ``[task, way]``,
    the labels; with rotations also ``quarter_turns`` ``[task, way]``, counterclockwise. Nothing describes a task.

    Raises:
        ValueError: an option is out of range, shapes do not agree, two splits share a class; from ``sample``, a split
            with fewer classes than ways, or a class with fewer items than support and query take.
    """

    inputs: Tensor
    """``[item, *shape]``: images of uint8 are scaled to [0, 1], anything else is read as the numbers that it holds."""
    labels: Tensor
    """``[item]``: the class of each item, an integer."""
    ways: int = 5
    """Classes of a task."""
    shots: int = 1
    """Support items of each class."""
    queries: int | None = None
    """Query items of each class in meta-training; by default as many as shots."""
    train_shots: int | None = None
    """Support items of each class in meta-training, where Reptile takes more; by default as many as shots."""
    test_queries: int | None = None
    """Query items of each class at validation and test; by default as many as shots, as in the MAML paper's code."""
    train_ways: int | None = None
    """Classes of a task in meta-training, where prototypical networks take more; by default as many as ways."""
    rotations: Rotations = "none"
    """In which splits square images turned by 90, 180 and 270 degrees count as new classes: none, train or all. The
    classes of a task are always different ones before they are turned."""
    classes: Classes | None = None
    """The labels of each split; by default 64, 16 and 20 % of them at random (``metarl.fewshot.split_classes``)."""
    names: Sequence[str] = ()
    """What errors call the classes 0, 1, ...; by default their labels."""
    scale: float | None = None
    """What inputs are divided by; by default 255 for images of uint8 that hold more than 0 and 1, and 1 for others."""
    drop_small: bool = False
    """Leave out classes with fewer items than support and query take; a warning says how many."""

    def __post_init__(self) -> None:
        check_episode(**{name: getattr(self, name) for name in EPISODE})
        check_items(self.inputs, self.labels)
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale={self.scale}: expected a positive number")
        if self.rotations != "none" and (self.inputs.ndim < 3 or self.inputs.shape[-1] != self.inputs.shape[-2]):
            raise ValueError(f"rotations need square images, not inputs of shape {tuple(self.inputs.shape[1:])}")
        self._groups  # noqa: B018  # raises ValueError for wrong labels and splits
        self._scale  # noqa: B018  # warns where it is not plain
        if self.drop_small:
            self._groups.tell_small({split: self._sizes(split) for split in SPLITS}, "classes")

    @property
    def spec(self) -> Spec:
        """An item in, one of the ways out, of which a test may use fewer than training."""
        return Spec(tuple(self.inputs.shape[1:]), most_ways(self.ways, self.train_ways), "classification")

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> "EpisodeTasks":
        """Sample tasks. Raises ValueError for fewer than one, and for a split that cannot fill an episode."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        (support, query), ways = self._sizes(split), self._ways(split)
        groups = self._groups.choose_groups(self._pool(split), num_tasks, ways, generator)
        items = self._groups.choose(groups, support + query, generator)
        parameters = {"classes": self._groups.labels[groups]}
        if self.rotations != "none":
            turned = self.rotations in ("all", split)
            parameters["quarter_turns"] = torch.randint(4 if turned else 1, groups.shape, generator=generator)
        return EpisodeTasks(self.inputs, items[..., :support], items[..., support:], parameters, self._scale)

    def check_split(self, split: Split) -> None:
        """Raise ValueError for a split that has classes, but cannot fill an episode."""
        if len(self._groups.pools[split]):
            self._pool(split)

    def _sizes(self, split: Split) -> tuple[int, int]:
        return episode_items(split, self.shots, self.queries, self.train_shots, self.test_queries)

    def _ways(self, split: Split) -> int:
        return (split == "train" and self.train_ways) or self.ways

    def _pool(self, split: Split) -> Tensor:
        return self._groups.pool(split, self._ways(split), sum(self._sizes(split)), self.names, drop=self.drop_small)

    @cached_property
    def _scale(self) -> float:
        return image_scale(self.inputs) if self.scale is None else self.scale

    @cached_property
    def _groups(self) -> Groups:
        return group(self.labels, self.classes)


@dataclass(frozen=True, eq=False)
class EpisodeTasks:
    """Tasks made of labelled items: which items of a tensor are whose support and query."""

    inputs: Tensor  # [item, *shape], the items of all tasks
    support: Tensor  # [task, way, shot] positions in inputs
    query: Tensor  # [task, way, query]
    parameters: dict[str, Tensor]
    scale: float | None = None  # what inputs are divided by; None: 255 for uint8, 1 for others

    def __init_subclass__(cls) -> None:
        refuse_draw_alone(cls)

    @property
    def descriptors(self) -> Tensor:
        """``[task, 0]``: nothing describes a task."""
        return torch.zeros(len(self.support), 0)

    @property
    def items(self) -> int:
        """How many items a task has, support and query."""
        return self.support[0].numel() + self.query[0].numel()

    def draw(self, learner: Learner | None, state: State, role: Role, generator: Generator) -> Examples:
        """Return all items of a role, in random order; every draw returns the same ones."""
        return next(self.draw_groups(role, generator, len(self.support)))

    def draw_groups(self, role: Role, generator: Generator, size: int) -> Iterator[Examples]:
        """Yield what ``draw`` returns, ``size`` tasks at a time, so that the items of all need not be held at once."""
        device = generator.device
        chosen = send(self.support if role == "support" else self.query, device)
        tasks, ways, count = chosen.shape
        order = torch.rand(tasks, ways * count, generator=generator, device=device).argsort(1)
        targets, items = order // count, chosen.flatten(1).gather(1, order)
        turns = self.parameters.get("quarter_turns")
        quarters = None if turns is None else send(turns, device).gather(1, targets)
        for first in range(0, tasks, size):
            group = slice(first, first + size)
            inputs = gather(self.inputs, items[group])
            if quarters is not None:
                inputs = rotated(inputs, quarters[group])
            yield Examples(numbers(inputs, self.scale), targets[group])

    def first(self, count: int) -> "EpisodeTasks":
        """Return the first tasks."""
        parameters = {name: values[:count] for name, values in self.parameters.items()}
        return replace(self, support=self.support[:count], query=self.query[:count], parameters=parameters)


def refuse_draw_alone(tasks: type) -> None:
    """Raise TypeError for a subclass that overrides ``draw`` alone: evaluation uses ``draw_groups`` instead."""
    if "draw" in vars(tasks) and "draw_groups" not in vars(tasks):
        raise TypeError(
            f"{tasks.__name__} overrides draw, and evaluation would not use it: override draw_groups instead, which "
            "draw calls"
        )


def episode_items(
    split: Split, shots: int, queries: int | None, train_shots: int | None, test_queries: int | None
) -> tuple[int, int]:
    """Return how many support and query items each class has in the episodes of a split."""
    if split == "train":
        return train_shots or shots, queries or shots
    return shots, test_queries or shots


def most_ways(ways: int, train_ways: int | None) -> int:
    """Return how many classes a network must tell apart, in meta-training or at test."""
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
    """Raise ValueError for options that no episode can have."""
    for name, count in {"ways": ways, "train_ways": train_ways}.items():
        if count is not None and count < 2:
            raise ValueError(f"{name}={count}: a task has at least 2 classes")
    check_counts(shots=shots, queries=queries, train_shots=train_shots, test_queries=test_queries)
    if rotations not in get_args(Rotations):
        raise ValueError(f"rotations={rotations!r}: expected one of {', '.join(get_args(Rotations))}")


def check_counts(**counts: int | None) -> None:
    """Raise ValueError for a number of items below 1."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name}={count}: expected at least 1")


def check_items(values: Tensor, labels: Tensor, what: str = "inputs and labels", item: str = "item") -> None:
    """Raise ValueError unless both are tensors, there is a label for each item, and all values are finite.

    They must be so as numbers of torch's default dtype too; a warning tells what the cast to it makes equal.
    """
    for found in (values, labels):
        if not isinstance(found, Tensor):
            raise ValueError(f"{what}: found {type(found).__name__}, expected tensors (torch.as_tensor makes them)")
    if labels.ndim != 1 or values.shape[:1] != labels.shape:
        shapes = f"{tuple(values.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"{what} have shapes {shapes}: expected [{item}, *shape] and [{item}]")
    check_numbers(values, what.partition(" ")[0])


def picture(tasks: EpisodeTasks, queries: Sequence[Batch], path: Path) -> Path:
    """Draw the support and query images of an evaluation's first tasks; return the path.

    They are drawn once more, and only those that are shown: ``queries`` would hold the images of all tasks.
    """
    from metarl.pictures.plotting import episodes

    shown = tasks.first(SHOWN)
    support, query = (shown.draw(None, None, role, stream(0, "picture")) for role in get_args(Role))
    return episodes(*support, *query, path, SHOWN)


def gather(inputs: Tensor, items: Tensor) -> Tensor:
    """Return the inputs ``[item, *shape]`` at positions ``[task, item]``, on the positions' device."""
    held = on_device(inputs, items.device)
    return held.index_select(0, items.flatten()).reshape(*items.shape, *inputs.shape[1:])


_copies = WeakIdKeyDictionary()


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, copied there once, whichever families and tasks of this process ask for it."""
    if tensor.device == device:
        return tensor
    if tensor not in _copies:
        _copies[tensor] = {}
    copies: dict[torch.device, Tensor] = _copies[tensor]
    if device not in copies:
        copies[device] = tensor.to(device)
    return copies[device]


def rotated(images: Tensor, quarter_turns: Tensor) -> Tensor:
    """Turn images ``[task, item, ..., size, size]`` counterclockwise by ``[task, item]`` times 90 degrees."""
    turns = quarter_turns.reshape(*quarter_turns.shape, *[1] * (images.ndim - 2))
    images = torch.where(turns % 2 == 1, images.rot90(1, (-2, -1)), images)
    return torch.where(turns >= 2, images.flip(-2, -1), images)

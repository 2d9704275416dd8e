"""Few-shot classification of labelled items in one tensor. An episode is drawn as indices into it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor
from torch.utils.weak import WeakIdKeyDictionary

from metarl.fewshot.grouping import (
    SPLITS,
    Bounds,
    Classes,
    Count,
    Groups,
    Parted,
    Sizes,
    bounds_of,
    group,
    row_size,
)
from metarl.fewshot.numbers import check_numbers, fingerprint, image_scale, numbers
from metarl.fewshot.standard import image_standard, in_units
from metarl.seeding import Places, stream, uniform
from metarl.selection import drawn_in_whole, overrides, rows_of, selected
from metarl.speed import send
from metarl.types import Batch, Examples, InputScale, Role, Spec, Split, Standard, Units, Which, places, valid

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

    Ways, shots and queries may be ranges, such as ``shots=(1, 10)``, which tasks differ in, as in Meta-Dataset
    (Triantafillou et al., 2020, arXiv 1903.03096): each task draws its number of classes, and each class its number of
    support items, uniformly; a class of few items gives what it has. Batches then have a mask. Two more task parameters
    are ``ways`` and ``shots`` ``[task]``, support items per class on average; absent classes are -1.

    Raises:
        ValueError: an option is out of range, shapes do not agree, or two splits share a class. ``sample`` raises it
            for a split with fewer classes than ways, and for a class with too few items for support and query.
    """

    inputs: Tensor
    """``[item, *shape]``. Images of uint8 are scaled to [0, 1]; other inputs are not scaled."""
    labels: Tensor
    """``[item]``: the class of each item, an integer."""
    ways: Count = 5
    """Classes per task, or a range: at most as many as the split has."""
    shots: Count = 1
    """Support items per class, or a range, from which each class of each task draws."""
    queries: Count | None = None
    """Query items per class in meta-training; by default as many as shots. A range: as many as are left, up to its
    end."""
    train_shots: Count | None = None
    """Support items per class in meta-training; by default as many as shots. Reptile uses more."""
    test_queries: Count | None = None
    """Query items per class in validation and test; by default as many as shots, as in the MAML paper's code."""
    train_ways: Count | None = None
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
    normalise: bool = False
    """Bring inputs into standard units, after ``scale``: minus their mean over the items of the training classes,
    divided by their standard deviation there. Images have one of each for a channel, other inputs for each number."""

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
        ways = most_ways(self.ways, self.train_ways)
        ragged = is_ragged(**{name: getattr(self, name) for name in EPISODE})
        return Spec(tuple(self.inputs.shape[1:]), ways, "classification", ragged=ragged)

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> "EpisodeTasks":
        """Sample tasks. Raises ValueError for fewer than one task, and for a split that cannot fill an episode."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        if self.spec.ragged:
            return self._sample_unequal(num_tasks, split, generator)
        (support, _), (query, _), ways = *self._sizes[split], self._ways(split)[1]
        # Always float64, so that the tasks of a seed do not depend on torch's default dtype.
        size = row_size(ways, support + query)
        numbers = uniform(generator, num_tasks, size + ways, dtype=torch.float64)
        groups, items = self._groups.choose(self._pool(split), ways, support + query, numbers[:, :size])
        parameters = {"classes": self._groups.labels[groups]} | self._turned(split, numbers[:, size:])
        parts = items[..., :support], items[..., support:]
        return EpisodeTasks(self.inputs, *parts, parameters, self._scale, standard=self._units.inputs)

    def _sample_unequal(self, num_tasks: int, split: Split, generator: Generator) -> "EpisodeTasks":
        bounds, (fewest, most), pool = self._sizes[split], self._ways(split), self._pool(split)
        most = min(most, len(pool))
        size = row_size(most, bounds.most)
        numbers = uniform(generator, num_tasks, size + 2 * most + 1, dtype=torch.float64)
        turns, shares, of_ways = torch.split(numbers[:, size:], [most, most, 1], dim=1)
        groups, support, query = self._groups.choose_unequal(pool, most, bounds, numbers[:, :size], shares)
        ways = fewest + ((most - fewest + 1) * of_ways).long()  # [task, 1]
        present = torch.arange(most) < ways
        support, query = (Parted(part.items, part.known & present.unsqueeze(-1)) for part in (support, query))
        shots = support.known.sum((1, 2)) / ways.squeeze(1)
        parameters = {
            "classes": torch.where(present, self._groups.labels[groups], -1),
            **self._turned(split, turns),
            "ways": ways.squeeze(1).to(torch.get_default_dtype()),
            "shots": shots.to(torch.get_default_dtype()),
        }
        known = None, support.known, query.known, self._units.inputs
        return EpisodeTasks(self.inputs, support.items, query.items, parameters, self._scale, *known)

    def _turned(self, split: Split, numbers: Tensor) -> dict[str, Tensor]:
        if self.rotations == "none":
            return {}
        turns = 4 if self.rotations in ("all", split) else 1
        return {"quarter_turns": (turns * numbers).long()}

    @property
    def input_scale(self) -> InputScale:
        """What inputs are divided by: floats only if these are floats."""
        return InputScale(self._scale, floats=self.inputs.is_floating_point())

    def units(self) -> Units:
        """Return the standard units of inputs and targets; None for what is left as it is."""
        return self._units

    def with_units(self, units: Units) -> "NWayKShot":
        """Return the family in the units of another one, such as that of training."""
        copy: NWayKShot = in_units(self, units)
        return copy

    def check_split(self, split: Split) -> None:
        """Raise ValueError if a split has classes but cannot fill an episode."""
        if len(self._groups.pools[split]):
            self._pool(split)

    def fingerprint(self) -> str:
        """Return a digest of the items and their labels. A run is only used with the data that it was trained on."""
        return fingerprint(self.inputs, self.labels)

    def _ways(self, split: Split) -> tuple[int, int]:
        return bounds_of((split == "train" and self.train_ways) or self.ways)

    def _pool(self, split: Split) -> Tensor:
        return self._groups.pool(split, self._ways(split)[0], self._sizes[split].least, self.drop_small)

    @cached_property
    def _units(self) -> Units:
        """Mean and standard deviation of the items of the training classes, if they are used."""
        if not self.normalise:
            return Units()
        return Units(image_standard(self.inputs, self._groups.training_rows("items"), self._scale))

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
    support_known: Tensor | None = None  # [task, way, shot] bool: not padding; None: none is
    query_known: Tensor | None = None  # [task, way, query]
    standard: Standard | None = None  # the units of scaled inputs

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

    @property
    def units(self) -> Units:
        """The standard units of inputs, if any."""
        return Units(self.standard)

    def draw(self, role: Role, generator: Generator) -> Examples:
        """Return all items of a role in random order. Every draw returns the same items."""
        return next(self.draw_groups(role, generator, len(self.support)))

    def draw_groups(self, role: Role, generator: Generator, size: int) -> Iterator[Examples]:
        """Yield what ``draw`` returns, ``size`` tasks at a time: the images of all tasks may not fit in memory."""
        device = generator.device
        chosen = send(self.support if role == "support" else self.query, device)
        tasks, ways, count = chosen.shape
        keys = uniform(generator, self.places or tasks, ways * count)
        known = None if self.support_known is None else self._known(role).to(device).flatten(1)
        order = (keys if known is None else torch.where(known, keys, 2)).argsort(1)  # padding comes last
        targets, items = order // count, chosen.flatten(1).gather(1, order)
        mask = None if known is None else known.gather(1, order)
        turns = self.parameters.get("quarter_turns")
        quarters = None if turns is None else send(turns, device).gather(1, targets)
        for first in range(0, tasks, size):
            group = slice(first, first + size)
            inputs = gather(self.inputs, items[group])
            if quarters is not None:
                inputs = rotated(inputs, quarters[group])
            inputs = numbers(inputs, self.scale)
            inputs = inputs if self.standard is None else self.standard.apply(inputs)
            drawn = Examples(inputs=inputs, targets=targets[group])
            yield drawn if mask is None else masked(drawn, mask[group])

    def _known(self, role: Role) -> Tensor:
        known = self.support_known if role == "support" else self.query_known
        assert known is not None
        return known

    def select(self, tasks: Which) -> Any:
        """Return some of the tasks, as ``EpisodeTasks``; they draw what they draw among all of these."""
        return some_of(self, tasks, EpisodeTasks)


def masked(examples: Examples, known: Tensor) -> Examples:
    """Return examples with a mask, and zeros where ``known`` ``[task, item]`` tells of padding."""
    inputs, targets = (
        values.masked_fill(~known.reshape(*known.shape, *[1] * (values.ndim - 2)), 0)
        for values in (examples.inputs, examples.targets)
    )
    return Examples(inputs=inputs, targets=targets, mask=known.to(torch.get_default_dtype()))


def some_of(tasks: Any, which: Which, kind: type) -> Any:
    """Return some tasks made of items at positions ``support`` and ``query``."""
    if overrides(tasks, kind, "draw", "draw_groups"):
        return drawn_in_whole(tasks, which)
    chosen = places(which, len(tasks.support))
    known = {
        name: value[chosen]
        for name in ("support_known", "query_known")
        if (value := getattr(tasks, name, None)) is not None
    }
    return replace(
        tasks,
        support=tasks.support[chosen],
        query=tasks.query[chosen],
        parameters=rows_of(tasks.parameters, chosen),
        places=selected(tasks.places, which, len(tasks.support)),
        **known,
    )


def refuse_draw_alone(tasks: type) -> None:
    """Raise TypeError for a subclass that overrides ``draw`` alone: evaluation uses ``draw_groups`` instead."""
    if "draw" in vars(tasks) and "draw_groups" not in vars(tasks):
        raise TypeError(
            f"{tasks.__name__} overrides draw, and evaluation would not use it: override draw_groups instead, which "
            "draw calls"
        )


def episode_sizes(shots: Count, queries: Count | None, train_shots: Count | None, test_queries: Count | None) -> Sizes:
    """Return the number of support and query items of each class in each split. Raises ValueError for one below 1."""
    check_counts(shots=shots, queries=queries, train_shots=train_shots, test_queries=test_queries)
    train = Bounds(bounds_of(train_shots or shots), bounds_of(queries or shots))
    test = Bounds(bounds_of(shots), bounds_of(test_queries or shots))
    return {split: train if split == "train" else test for split in SPLITS}


def most_ways(ways: Count, train_ways: Count | None) -> int:
    """Return how many classes a network must distinguish, in meta-training or at test."""
    return max(bounds_of(ways)[1], bounds_of(train_ways or 0)[1])


def is_ragged(**options: Any) -> bool:
    """Return whether options of episodes are ranges, so that tasks differ in their number of items."""
    ranges = [bounds_of(value) for name, value in options.items() if name != "rotations" and value is not None]
    return any(low < high for low, high in ranges)


def check_episode(
    ways: Count,
    shots: Count,
    queries: Count | None,
    train_shots: Count | None,
    test_queries: Count | None,
    train_ways: Count | None,
    rotations: Rotations,
) -> None:
    """Raise ValueError for invalid options of episodes."""
    for name, count in {"ways": ways, "train_ways": train_ways}.items():
        if count is not None and bounds_of(count)[0] < 2:
            raise ValueError(f"{name}={count}: a task has at least 2 classes")
    check_counts(ways=ways, train_ways=train_ways)
    check_counts(shots=shots, queries=queries, train_shots=train_shots, test_queries=test_queries)
    if rotations not in get_args(Rotations):
        raise ValueError(f"rotations={rotations!r}: expected one of {', '.join(get_args(Rotations))}")


def check_counts(**counts: Count | None) -> None:
    """Raise ValueError for no whole number, one below 1, or a range that ends before it begins. None is accepted."""
    for name, count in counts.items():
        if count is None:
            continue
        ends = count if isinstance(count, tuple) and len(count) == 2 else (count,)
        if not all(isinstance(end, Integral) and not isinstance(end, bool) for end in ends):
            raise ValueError(f"{name}={count!r}: expected a whole number, or two of them: the ends of a range")
        low, high = bounds_of(count)
        if low < 1:
            raise ValueError(f"{name}={count}: expected at least 1")
        if low > high:
            raise ValueError(f"{name}={count}: expected the lower end of the range first")


def check_items(values: Tensor, labels: Tensor, what: str = "inputs and labels", item: str = "item") -> None:
    """Raise ValueError unless both are tensors, each item has a label, and all values are finite.

    Values must also be finite in torch's default dtype. A warning names distinct values that this cast makes equal.
    """
    check_rows(values, labels, what, item)
    check_numbers(values, what.partition(" ")[0])


def check_rows(values: Tensor, labels: Tensor, what: str, item: str) -> None:
    """Raise ValueError unless both are tensors, and each item has a label."""
    for found in (values, labels):
        if not isinstance(found, Tensor):
            raise ValueError(f"{what}: found {type(found).__name__}, expected tensors (torch.as_tensor makes them)")
    if labels.ndim != 1 or values.shape[:1] != labels.shape:
        shapes = f"{tuple(values.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"{what} have shapes {shapes}: expected [{item}, *shape] and [{item}]")


def picture(tasks: EpisodeTasks, queries: Sequence[Batch], path: Path) -> Path:
    """Plot the support and query images of the first tasks of an evaluation; return the path.

    It draws these images again, because ``queries`` would load the images of all tasks.
    """
    from metarl.pictures.plotting import episodes

    shown = replace(tasks, standard=None).select(slice(SHOWN))  # as they look
    support, query = (shown.draw(role, stream(0, "picture")) for role in get_args(Role))
    classes = [batch.targets.masked_fill(valid(batch) == 0, -1) for batch in (support, query)]
    return episodes(support.inputs, classes[0], query.inputs, classes[1], path, SHOWN)


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

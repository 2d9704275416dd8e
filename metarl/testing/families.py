"""Checks of every task family: how it samples tasks, and what is drawn from them."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, get_args

import torch
from torch import Tensor

from metarl import control, objectives
from metarl.control import ControlTasks, Parametrised
from metarl.seeding import stream
from metarl.testing.batches import batch_faults, close, default_dtype, equal, global_states, shape_faults, tensors
from metarl.testing.findings import Check, Fault, Found, NotChecked, Note
from metarl.testing.subject import ROLES, Subject, drawing
from metarl.types import DrawsGroups, Examples, Kind, SharesTasks, Split, Tasks, valid


def _spec(subject: Subject) -> Found:
    spec, blamed = subject.spec, _member(subject.family, "spec")
    if spec.kind not in get_args(Kind):
        yield Fault(f"spec.kind is {spec.kind!r}: expected one of {', '.join(get_args(Kind))}", blamed)
    if any(size < 1 for size in (*spec.input_shape, spec.output_size)):
        yield Fault(f"{spec} has a size below 1", blamed)
    if spec.descriptor_size < 0:
        yield Fault(f"{spec} has a negative descriptor_size", blamed)


def _member(target: Any, name: str) -> Any:
    """Return a property's function, which has a place in the source; if there is none, return the class."""
    return getattr(getattr(type(target), name, None), "fget", None) or type(target)


def _tasks(subject: Subject) -> Found:
    for split in get_args(Split):
        if refusal := subject.refusal(split):
            yield Note(f"the family has no {split} tasks: {refusal}")
    for split in subject.splits():
        tasks, blamed = subject.sample(split), subject.family.sample
        for name, values in tasks.parameters.items():
            if len(values) != subject.count:
                yield Fault(f"the task parameter {name!r} has {len(values)} rows for {subject.count} tasks", blamed)
            dtype = None if values.is_floating_point() else values.dtype
            shape = (len(values), *values.shape[1:])
            yield from shape_faults(f"the task parameter {name!r}", values, shape, dtype, blamed)
        expected = (subject.count, subject.spec.descriptor_size)
        yield from shape_faults("descriptors", tasks.descriptors, expected, blamed=blamed)


def _refusal(subject: Subject) -> Found:
    try:
        subject.family.sample(0, "train", stream(0, "train"))
    except ValueError:
        return
    yield Fault("sample(0, ...) returned tasks: expected a ValueError for fewer than one task", subject.family.sample)


def _seeding(subject: Subject) -> Found:
    blamed, before = subject.family.sample, global_states()
    for split in subject.splits():
        one, other = subject.sample(split).parameters, subject.sample(split).parameters
        for name in one:
            if not torch.equal(one[name], other[name]):
                yield Fault(f"{name!r} of two samples with the same seed differ: use the given generator", blamed)
    if global_states() != before:
        yield Fault("sampling tasks drew from a global generator: use the given one", blamed)
    if _differ(subject, "train"):
        return
    if any(_differ(subject, split) for split in subject.splits()):
        yield Note("the training tasks of 5 seeds are the same: is the training set to hold one task?")
    else:
        yield Fault("the tasks of 5 seeds are the same: use the given generator", blamed)


def _differ(subject: Subject, split: Split) -> bool:
    first, *others = (list(subject.sample(split, seed).parameters.values()) for seed in range(1, 6))
    return not all(equal(found, first) for found in others)


def _number(subject: Subject) -> Found:
    few = subject.count
    many = 2 * few + 1
    for split in subject.splits():
        tasks = subject.sample(split)
        try:
            more = subject.sample(split, count=many)
        except ValueError as refusal:
            raise NotChecked(f"the family has no {many} {split} tasks: {refusal}") from refusal
        message = f"of {few} tasks and of {many}, the first {few} should be the same, but"
        ours, theirs = (dict(found.parameters) | {"descriptors": found.descriptors} for found in (tasks, more))
        differ = [name for name, values in ours.items() if not _alike(values, theirs[name][:few])]
        if differ:
            yield Fault(f"{message} {' and '.join(map(repr, differ))} differ: {ROWS}", subject.family.sample)
            return
        if subject.spec.control:
            continue
        for role in ROLES:
            drawn, others = tensors(subject.draw(tasks, role)), tensors(subject.draw(more, role))
            if not all(_alike(one, other[:few]) for one, other in zip(drawn, others, strict=True)):
                yield Fault(f"{message} their {role} data differ: {ROWS}", drawing(tasks))
                return


def _alike(one: Tensor, other: Tensor) -> bool:
    # Vectorised functions such as exp2 round differently at the end of an array, and so depend on its length.
    return close(one, other) if one.is_floating_point() and one.shape == other.shape else torch.equal(one, other)


ROWS = (
    "draw all random numbers of a task in one row, by metarl.seeding.uniform(generator, num_tasks, how_many), or each "
    "task's from a generator of its own, by metarl.seeding.spawn(generator, num_tasks)"
)


def _descriptors(subject: Subject) -> Found:
    blamed, tasks = subject.family.sample, subject.sample()
    if isinstance(tasks, ControlTasks) and isinstance(subject.family, Parametrised):
        # tasks_with also refuses parameters outside parameter_space.
        expected = control.tasks_with(subject.family, tasks.parameters).descriptors
        if expected.shape != tasks.descriptors.shape or not torch.equal(expected, tasks.descriptors):
            message = "descriptors are not the task parameters, flattened, in the order of parameter_space"
            yield Fault(f"{message}: expected {expected.tolist()}, found {tasks.descriptors.tolist()}", blamed)
    if not subject.spec.descriptor_size:
        return
    descriptors = [tuple(row) for row in tasks.descriptors.tolist()]
    if subject.spec.targets and not objectives.told_apart(tasks.descriptors)[1].all():
        yield Fault("a descriptor tells by a 1 among zeros which of Spec.targets a task has; some are not so", blamed)
    by_parameters = dict(zip(rows(tasks), descriptors, strict=True))
    if any(by_parameters[row] != descriptor for row, descriptor in zip(rows(tasks), descriptors, strict=True)):
        yield Fault("tasks with the same parameters have different descriptors", blamed)
    if len(by_parameters) > 1 and len(set(descriptors)) == 1:
        yield Fault("tasks with different parameters all have the same descriptor", blamed)


def rows(tasks: Tasks) -> list[tuple[float, ...]]:
    """Return the parameters of each task as one tuple."""
    flat = [values.reshape(len(values), -1).double() for values in tasks.parameters.values()]
    return [tuple(row) for row in torch.cat(flat, dim=1).tolist()] if flat else []


def _splits(subject: Subject) -> Found:
    if "test" not in subject.splits():
        raise NotChecked("the family has no test tasks")
    samples = {split: [subject.sample(split, seed) for seed in range(20)] for split in subject.splits()}
    seen: dict[str, set[Any]] = {
        split: {row for tasks in batches for row in rows(tasks)} | _items(subject, batches)
        for split, batches in samples.items()
    }
    shared = sorted(split for split in seen if split != "test" and seen[split] & seen["test"])
    if not shared:
        return
    if isinstance(subject.family, SharesTasks) and subject.family.splits_share_tasks:
        yield Note("splits_share_tasks is True: test tasks may also occur in training")
        return
    yield Fault(
        f"some {' and '.join(shared)} tasks are also test tasks: hold tasks out for each split, or, if there are too "
        "few, set splits_share_tasks = True in the family",
        subject.family.sample,
    )


def _items(subject: Subject, found: list[Tasks]) -> set[Any]:
    """Return the items of classification tasks: if two splits share a class, they share items."""
    if subject.spec.kind != "classification":
        return set()
    batches = [subject.draw(tasks, role) for tasks in found for role in ROLES]
    inputs = [batch.inputs[valid(batch) > 0] for batch in batches if isinstance(batch, Examples)]
    return {item.numpy().tobytes() for items in inputs for item in items}


def _draws(subject: Subject) -> Found:
    for split in subject.splits():
        tasks = subject.sample(split)
        for role in ROLES:
            yield from batch_faults(subject.draw(tasks, role), subject.spec, subject.count, drawing(tasks))


def _determinism(subject: Subject) -> Found:
    before = global_states()
    for role in ROLES:
        tasks, again = subject.sample(), subject.sample()
        drawn = tensors(subject.draw(tasks, role))
        for which, redrawn in (("equal", subject.draw(again, role)), ("the same", subject.draw(tasks, role))):
            if not equal(drawn, tensors(redrawn)):
                message = f"two draws of {role} data from {which} tasks with the same seed differ"
                yield Fault(f"{message}: use the given generator", drawing(tasks))
        if all(equal(drawn, tensors(subject.draw(tasks, role, seed))) for seed in range(1, 4)):
            yield Fault(f"{role} data of 4 seeds are the same: use the given generator", drawing(tasks))
    if global_states() != before:
        yield Fault("drawing data drew from a global generator: use the given one", drawing(tasks))


def _groups(subject: Subject) -> Found:
    tasks = subject.sample()
    if not isinstance(tasks, DrawsGroups):
        raise NotChecked("the tasks cannot be drawn in groups (no method draw_groups)")
    for role in ROLES:
        groups = list(tasks.draw_groups(role, stream(0, role), 1))
        together = [torch.cat(values) for values in zip(*map(tensors, groups), strict=True)]
        drawn = tensors(subject.draw(tasks, role))
        if len(groups) != subject.count or not equal(together, drawn):
            yield Fault(f"draw_groups gives other {role} data than draw with the same generator", tasks.draw_groups)


def _independence(subject: Subject) -> Found:
    tasks = subject.sample()
    if subject.count < 2:
        raise NotChecked("this check needs two tasks")
    drawn, samples = tensors(subject.draw(tasks)), (subject.sample("train", seed) for seed in range(1, 20))
    changed = list(islice((found for found in samples if rows(found)[-1] != rows(tasks)[-1]), 5))
    for others in changed:
        other = tensors(subject.draw(with_last(tasks, others)))
        if not equal([values[:-1] for values in drawn], [values[:-1] for values in other]):
            yield Fault("changing the parameters of the last task changes what the others draw", drawing(tasks))
            return
        if not equal(drawn, other):
            return
    if changed:
        yield Note("changing a task's parameters did not change its data: are they used, or are rewards just rare?")
    else:
        yield Note("the training tasks of 20 seeds are the same, so none could be changed")


def with_last(tasks: Tasks, others: Tasks) -> Tasks:
    """Return tasks with the last task replaced by that of others. Raises NotChecked unless tasks are a dataclass."""
    if not dataclasses.is_dataclass(tasks) or isinstance(tasks, type):
        raise NotChecked(f"{type(tasks).__name__} is not a dataclass, so the check cannot replace one of its tasks")
    count = len(tasks.descriptors)

    def joined(one: Any, other: Any) -> Any:
        if isinstance(one, Mapping):
            return {name: joined(one[name], other[name]) for name in one}
        return torch.cat([one[:-1], other[-1:]]) if isinstance(one, Tensor) and len(one) == count else one

    fields = [field.name for field in dataclasses.fields(tasks) if field.init]
    changed: Any = dataclasses.replace(
        tasks, **{name: joined(getattr(tasks, name), getattr(others, name)) for name in fields}
    )
    return changed


def _dtypes(subject: Subject) -> Found:
    with other_dtype() as dtype:
        tasks = subject.sample()
        faults = batch_faults(subject.draw(tasks), subject.spec, subject.count, drawing(tasks))
        expected = (subject.count, subject.spec.descriptor_size)
        descriptors = shape_faults("descriptors", tasks.descriptors, expected, blamed=subject.family.sample)
        for fault in (*descriptors, *faults):
            yield Fault(f"with {dtype} as torch's default, {fault.message}", getattr(fault, "blamed", None))


@contextmanager
def other_dtype() -> Iterator[torch.dtype]:
    """Make float64 torch's default dtype inside the ``with`` block, or float32 if it is float64 already."""
    other = torch.float32 if torch.get_default_dtype() == torch.float64 else torch.float64
    with default_dtype(other):
        yield other


def _device(subject: Subject) -> Found:
    if subject.device.type == "cpu":
        raise NotChecked("no CUDA device, or device cpu was chosen")
    tasks = subject.sample()
    for role in ROLES:
        batch = subject.draw(tasks, role, device=subject.device)
        yield from batch_faults(batch, subject.spec, subject.count, drawing(tasks))
        for name, values in vars(batch).items():
            if isinstance(values, Tensor) and values.device.type != subject.device.type:
                message = f"{name} are on {values.device}, but the generator is on {subject.device}"
                yield Fault(message, drawing(tasks))


CHECKS = (
    Check("spec", "its kind and its sizes are valid", _spec),
    Check("tasks", "parameters and descriptors have one row per task, in every split", _tasks, ("spec",)),
    Check("refusal", "sampling fewer than one task raises ValueError", _refusal, ("spec",)),
    Check("seeding", "tasks depend only on the given generator", _seeding, ("tasks",)),
    Check("descriptors", "they agree with the parameters", _descriptors, ("tasks",)),
    Check("draws", "shapes, dtypes and ranges fit the spec, in every split and role", _draws, ("tasks",)),
    Check("determinism", "data depend only on the given generator", _determinism, ("draws", "seeding")),
    Check("groups", "tasks drawn in groups give the same data", _groups, ("draws", "determinism")),
    Check("independence", "a task's data do not depend on other tasks", _independence, ("draws", "determinism")),
    Check("number", "task k does not depend on the number of tasks", _number, ("independence",)),
    Check("splits", "test tasks do not occur in training", _splits, ("draws", "seeding")),
    Check("dtypes", "tensors have torch's default dtype", _dtypes, ("draws",)),
    Check("device", "data are drawn on the generator's device", _device, ("draws",)),
)

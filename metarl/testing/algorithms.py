"""Checks of an algorithm: its learner is built for a family and gets that family's data."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from metarl.outer import default_outer
from metarl.seeding import stream
from metarl.testing.batches import close, equal, global_states, shape_faults, tensors
from metarl.testing.families import other_dtype
from metarl.testing.findings import Check, Fault, Found, NotChecked
from metarl.training import gather
from metarl.types import (
    Algorithm,
    Batch,
    Examples,
    Experience,
    Family,
    Learner,
    Params,
    Rollout,
    State,
    held_by,
    holding,
    moved_buffers,
    rollout_of,
    select,
    valid,
)

SCORES: Mapping[str, tuple[str, ...]] = {"regression": ("loss",), "classification": ("loss", "accuracy")}
"""Scores that a meta-loss reports for labelled examples."""


@dataclasses.dataclass(frozen=True)
class AlgorithmSubject:
    """An algorithm under test, with a family, and experience that its own learner gathers."""

    algorithm: Algorithm
    family: Family
    count: int
    """Tasks in the experience."""
    device: torch.device

    @cached_property
    def learner(self) -> Learner:
        """The learner, with its first buffers. Raises ValueError if the algorithm does not support the family."""
        return holding(self.algorithm.build(self.family.spec))

    @cached_property
    def params(self) -> Params:
        """Initial parameters."""
        return self.learner.init(Generator().manual_seed(0))

    @cached_property
    def experience(self) -> Experience:
        """The experience of one meta-iteration."""
        return self.gathered(torch.device("cpu"))

    def gathered(self, device: torch.device) -> Experience:
        """Gather experience on a device."""
        draws = (stream(0, "draw", index, device=device) for index in itertools.count())
        params = {name: value.to(device) for name, value in self.params.items()}
        return gather(self.on(device), params, self.family.sample(self.count, "train", stream(0, "tasks")), draws)[0]

    def on(self, device: torch.device) -> Learner:
        """Return the learner with its buffers on a device."""
        return holding(self.learner, {name: value.to(device) for name, value in held_by(self.learner).items()})

    def outputs(self, experience: Experience, params: Params | None = None) -> list[Tensor]:
        """Return the outputs for the first query inputs, before the first adaptation and after the last."""
        inputs, learner = first_inputs(experience.query), self.on(experience.descriptors.device)
        with torch.no_grad():
            state = learner.begin(params or self.params, experience.descriptors)
            before, _ = self.learner.predict(state, inputs)
            for support in experience.supports:
                state = self.learner.adapt(state, support)
            return [before, self.learner.predict(state, inputs)[0]]


def first_inputs(query: Batch) -> Tensor:
    """Return items, or the first observations of episodes, ``[task, item, *input_shape]``."""
    return query.inputs if isinstance(query, Examples) else query.observations[:, :, 0]


def _build(subject: AlgorithmSubject) -> Found:
    learner, spec = subject.learner, subject.family.spec
    if dataclasses.replace(learner.spec, policy=spec.policy) != spec:
        yield Fault(f"the learner's spec is {learner.spec}, but it was built for {spec}", subject.algorithm.build)


def _initialisation(subject: AlgorithmSubject) -> Found:
    init, before = subject.learner.init, global_states()
    params, again, other = (init(Generator().manual_seed(seed)) for seed in (0, 0, 1))
    if global_states() != before:
        yield Fault("initialisation drew from a global generator: use the given one", init)
    if not equal(params.values(), again.values()):
        yield Fault("two initialisations with the same seed differ: use the given generator", init)
    if equal(params.values(), other.values()):
        yield Fault("initialisations with two seeds are the same: use the given generator", init)
    for name, value in params.items():
        yield from shape_faults(name, value, tuple(value.shape), blamed=init)
        if value.requires_grad:
            yield Fault(f"the initial {name} requires a gradient", init)


def _outputs(subject: AlgorithmSubject) -> Found:
    lead = first_inputs(subject.experience.query).shape[:2]
    for outputs in subject.outputs(subject.experience):
        shape = (*lead, subject.learner.spec.model_outputs)
        yield from shape_faults("outputs", outputs, shape, blamed=subject.learner.predict)


def _determinism(subject: AlgorithmSubject) -> Found:
    before, learner = global_states(), subject.learner
    if not equal(subject.outputs(subject.experience), subject.outputs(subject.experience)):
        yield Fault("outputs after the same adaptations differ: adaptation must be deterministic", learner.adapt)
    losses = [learner.meta_loss(subject.params, subject.experience)[0].detach() for _ in range(2)]
    if not equal(losses[:1], losses[1:]):
        message = "two meta-losses of the same experience differ: the meta-loss must be deterministic"
        yield Fault(message, learner.meta_loss)
    if global_states() != before:
        yield Fault("learning drew from a global generator", learner.adapt)


def _purity(subject: AlgorithmSubject) -> Found:
    # New data: a learner that overwrites its data would write the same values again into data of earlier checks.
    fresh = dataclasses.replace(subject).experience
    experience = dataclasses.replace(fresh, supports=tuple(_last_changed(support) for support in fresh.supports))
    before = [values.clone() for values in _tensors(subject.params, experience)]
    subject.outputs(experience)
    if not equal(_tensors(subject.params, experience), before):
        yield Fault("the learner changed its parameters or its data in place: make new tensors", subject.learner.adapt)
        return
    subject.learner.meta_loss(subject.params, experience)
    if not equal(_tensors(subject.params, experience), before):
        message = "the meta-loss changed its parameters or its data in place: make new tensors"
        yield Fault(message, subject.learner.meta_loss)


def _tensors(params: Params, experience: Experience) -> list[Tensor]:
    batches = (*experience.supports, experience.query)
    return [*params.values(), experience.descriptors, *(values for batch in batches for values in tensors(batch))]


def _meta_loss(subject: AlgorithmSubject) -> Found:
    learner, blamed = subject.learner, subject.learner.meta_loss
    leaves = {name: value.detach().clone().requires_grad_() for name, value in subject.params.items()}
    loss, _ = learner.meta_loss(leaves, subject.experience)
    yield from shape_faults("the meta-loss", loss, (len(subject.experience.descriptors),), blamed=blamed)
    gradients = torch.autograd.grad(loss.sum(), list(leaves.values()), materialize_grads=True)
    for name, gradient in zip(leaves, gradients, strict=True):
        if not gradient.isfinite().all():
            yield Fault(f"the meta-gradient of {name} is not finite", blamed)
    if not any(gradient.any() for gradient in gradients):
        yield Fault("the meta-gradient is zero", blamed)


def _objective(subject: AlgorithmSubject) -> Found:
    check = getattr(default_outer(subject.algorithm, subject.family.spec), "check", None)
    if check is not None:
        try:
            check(subject.learner)
        except ValueError as error:
            yield Fault(str(error), subject.learner.meta_loss)


def _scores(subject: AlgorithmSubject) -> Found:
    _, metrics = subject.learner.meta_loss(subject.params, subject.experience)
    for score in SCORES.get(subject.learner.spec.kind, ()):
        if not any(name.startswith(f"{score}/step_") for name in metrics):
            reported = ", ".join(metrics) or "nothing"
            message = f"the metrics of the meta-loss are {reported}: expected also {score}/step_k"
            yield Fault(message, subject.learner.meta_loss)


def _order(subject: AlgorithmSubject) -> Found:
    order, learner = torch.arange(subject.count).flip(0), subject.learner
    reversed_tasks = select(subject.experience, order)
    for found, expected in zip(subject.outputs(reversed_tasks), subject.outputs(subject.experience), strict=True):
        if not close(found, expected[order]):
            yield Fault("reversing the order of the tasks does not reverse that of the outputs", learner.predict)
    losses = (learner.meta_loss(subject.params, one)[0].detach() for one in (subject.experience, reversed_tasks))
    before, after = (values.mean() for values in losses)
    if not close(before, after):
        message = f"the order of the tasks changes the meta-loss from {before:.6g} to {after:.6g}"
        yield Fault(message, learner.meta_loss)


def _independence(subject: AlgorithmSubject) -> Found:
    experience = subject.experience
    changed = dataclasses.replace(experience, supports=tuple(_last_changed(support) for support in experience.supports))
    for found, expected in zip(subject.outputs(changed), subject.outputs(experience), strict=True):
        if not close(found[:-1], expected[:-1]):
            yield Fault("changing the support data of one task changes another's outputs", subject.learner.adapt)


def _last_changed(batch: Batch) -> Batch:
    if isinstance(batch, Examples):
        return dataclasses.replace(batch, inputs=_last_negated(batch.inputs))
    changed: dict[str, Any] = {name: _last_negated(getattr(batch, name)) for name in ("advantages", "rewards")}
    return dataclasses.replace(batch, **changed)


def _last_negated(values: Tensor) -> Tensor:
    return torch.cat([values[:-1], -values[-1:]])


def _outputs_of(learner: Learner, state: State, rollout: Rollout) -> Tensor:
    return (learner.memory.unroll(state, rollout) if learner.memory else learner.predict(state, rollout.observations))[
        0
    ]


def _replay(subject: AlgorithmSubject) -> Found:
    learner, experience = subject.learner, subject.experience
    if not learner.spec.control:
        raise NotChecked("labelled examples have no actions")
    blamed = learner.memory.unroll if learner.memory else learner.predict
    with torch.no_grad():
        state = learner.begin(subject.params, experience.descriptors)
        for batch in (*experience.supports, experience.query):
            rollout = rollout_of(batch)
            outputs = _outputs_of(learner, state, rollout)
            found = learner.spec.distribution.log_prob(outputs, rollout.actions) * rollout.mask
            if not close(found, rollout.log_probs * rollout.mask):
                ratios = (found - rollout.log_probs * rollout.mask).exp()
                yield Fault(
                    "replaying a rollout gives other action probabilities than acting did: their ratios should be 1, "
                    f"but range from {ratios.min():.3g} to {ratios.max():.3g}; the output for an observation must not "
                    "depend on other observations in the batch (as with batch norm)",
                    blamed,
                )
                return
            state = learner.adapt(state, batch)


def _padding(subject: AlgorithmSubject) -> Found:
    learner, experience = _ragged(subject), subject.experience
    supports = tuple(_with_padding(support) for support in experience.supports)
    padded = dataclasses.replace(experience, supports=supports, query=_with_padding(experience.query))
    before, after = (learner.meta_loss(subject.params, one) for one in (experience, padded))
    told = {"the meta-loss": (before[0], after[0])} | {name: (before[1][name], after[1][name]) for name in after[1]}
    for name, (one, other) in told.items():
        if not close(one.detach(), other.detach()):
            yield Fault(f"padding changes {name}, though the learner is masked: honour the mask", learner.meta_loss)
    found = [_adapted_outputs(learner, subject, batches) for batches in (experience.supports, supports)]
    if not close(*found):
        yield Fault("padding of the support data changes the outputs: honour the mask", learner.adapt)


def _ragged(subject: AlgorithmSubject) -> Learner:
    """Return the learner for tasks of unequal size. Raises NotChecked where it refuses them."""
    spec = subject.family.spec
    if spec.control:
        raise NotChecked("labelled examples alone are padded")
    if not subject.learner.masked:
        raise NotChecked("the learner refuses tasks of unequal size")
    try:
        learner = subject.algorithm.build(dataclasses.replace(spec, ragged=True))
    except ValueError as error:
        raise NotChecked(f"the learner refuses tasks of unequal size: {error}") from error
    return holding(learner, held_by(subject.learner))


def _adapted_outputs(learner: Learner, subject: AlgorithmSubject, supports: Iterable[Batch]) -> Tensor:
    with torch.no_grad():
        state = learner.begin(subject.params, subject.experience.descriptors)
        for support in supports:
            state = learner.adapt(state, support)
        return learner.predict(state, first_inputs(subject.experience.query))[0]


def _with_padding(batch: Batch) -> Batch:
    """Return examples with two items of padding more, which must not matter."""
    if not isinstance(batch, Examples):
        return batch
    lead = (len(batch.inputs), 2)
    more = Examples(
        inputs=torch.full((*lead, *batch.inputs.shape[2:]), 3.0, device=batch.inputs.device),
        targets=batch.targets[:, :1].expand(*lead, *batch.targets.shape[2:]),
        mask=torch.zeros(lead, device=batch.inputs.device),
    )
    joined = (torch.cat([getattr(one, name) for one in (batch, more)], dim=1) for name in ("inputs", "targets"))
    inputs, targets = joined
    return Examples(inputs=inputs, targets=targets, mask=torch.cat([valid(batch), valid(more)], dim=1))


def _buffers(subject: AlgorithmSubject) -> Found:
    learner, held = subject.learner, held_by(subject.learner)
    if learner.buffers is None:
        raise NotChecked("the learner has no buffers")
    blamed = learner.buffers.move
    if both := held.keys() & subject.params.keys():
        yield Fault(f"{min(both)} is both a buffer and a meta-parameter: rename the buffer", learner.buffers.init)
    given, before = [*held.values()], [value.clone() for value in held.values()]
    try:
        moved, again = (moved_buffers(learner, held, subject.experience) for _ in range(2))
    except ValueError as error:
        yield Fault(str(error), blamed)
        return
    if not equal(given, before):
        yield Fault("moving the buffers changed the old ones in place: make new tensors", blamed)
    elif not equal(moved.values(), again.values()):
        yield Fault("buffers moved twice by the same experience differ: let them depend on that alone", blamed)


def _dtypes(subject: AlgorithmSubject) -> Found:
    with other_dtype() as dtype:
        other = dataclasses.replace(subject)
        for check in (_initialisation, _outputs):
            for fault in check(other):
                if isinstance(fault, Fault):
                    yield fault._replace(message=f"with {dtype} as torch's default, {fault.message}")


def _device(subject: AlgorithmSubject) -> Found:
    if subject.device.type == "cpu":
        raise NotChecked("no CUDA device, or device cpu was chosen")
    params = {name: value.to(subject.device).requires_grad_() for name, value in subject.params.items()}
    experience = subject.gathered(subject.device)
    loss, _ = subject.on(subject.device).meta_loss(params, experience)
    for name, values in (("outputs", subject.outputs(experience, params)[-1]), ("the meta-loss", loss)):
        if values.device.type != subject.device.type:
            yield Fault(f"{name}: found on {values.device}, expected on {subject.device}", subject.learner.predict)


CHECKS = (
    Check("build", "the learner has the family's spec", _build),
    Check("initialisation", "parameters depend only on the given generator", _initialisation, ("build",)),
    Check("outputs", "outputs fit the spec, before and after adaptation", _outputs, ("initialisation",)),
    Check("determinism", "the same experience gives the same result", _determinism, ("outputs",)),
    Check("purity", "parameters and data are not changed in place", _purity, ("outputs",)),
    Check("meta-loss", "one number per task, with a finite gradient that is not zero", _meta_loss, ("outputs",)),
    Check("objective", "the default outer update minimises the meta-loss", _objective, ("meta-loss",)),
    Check("scores", "the meta-loss reports the scores of labelled examples", _scores, ("meta-loss",)),
    Check("order", "the order of the tasks does not matter", _order, ("determinism", "meta-loss")),
    Check("independence", "the data of one task do not affect other tasks", _independence, ("determinism",)),
    Check("replay", "replaying a rollout gives the log-probabilities of acting", _replay, ("determinism",)),
    Check("padding", "padding of tasks of unequal size changes nothing", _padding, ("determinism", "meta-loss")),
    Check("buffers", "they move as a function of the experience, and keep their form", _buffers, ("outputs",)),
    Check("dtypes", "tensors have torch's default dtype", _dtypes, ("outputs",)),
    Check("device", "learning runs on the device of the data", _device, ("outputs",)),
)

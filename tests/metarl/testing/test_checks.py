"""The contracts find what is broken: each case breaks one promise of a plugin that keeps the others."""

import dataclasses
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.synthetic import by_hand
from torch import Tensor, nn
from torch.nn import functional

from metarl import testing
from metarl.algorithms.maml import MAML
from metarl.algorithms.rl2 import RL2
from metarl.control.sampling import Sampling
from metarl.fewshot.classification import EpisodeTasks, NWayKShot
from metarl.fewshot.regression import Regression
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.testing.checks import ContractError
from metarl.testing.findings import Outcome
from metarl.types import Examples, Learner, Params, Rollout, Spec
from metarl_envs.bandit import Bandit

ITEMS = NWayKShot(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 20, ways=3)
BANDIT = Bandit(arms=3, sampling=Sampling(episodes=2, horizon=3))
LINES = Regression(lambda inputs, slope: slope * inputs, {"slope": (-1.0, 1.0)}, shots=2)
ALGORITHM = MAML(network=Network(hidden=(4,), activation="tanh"))


def failures(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return the messages of the checks that failed."""
    return {outcome.check: "\n".join(outcome.messages) for outcome in outcomes if outcome.verdict == "FAILED"}


class Broken:
    """A family whose tasks, or what is drawn from them, are changed on the way; perhaps also its spec."""

    def __init__(
        self,
        family: Any = ITEMS,
        sample: Callable[..., Any] = lambda tasks: tasks,
        draw: Callable[..., Any] = lambda batch: batch,
        spec: Spec | None = None,
    ) -> None:
        self.family, self.changed_tasks, self.changed_batch, self.spec = family, sample, draw, spec or family.spec

    def sample(self, num_tasks: int, split: Any, generator: torch.Generator) -> Any:
        tasks = self.changed_tasks(self.family.sample(num_tasks, split, generator))
        changed = SimpleNamespace(parameters=tasks.parameters, descriptors=tasks.descriptors)
        draw = tasks.rollout if self.family.spec.control else tasks.draw
        setattr(
            changed, "rollout" if self.family.spec.control else "draw", lambda *given: self.changed_batch(draw(*given))
        )
        return changed


def unseeded(tasks: Any) -> Any:
    return ITEMS.sample(len(tasks.descriptors), "train", torch.Generator().manual_seed(int(torch.randint(9, ()))))


def longer(tasks: Any) -> Any:
    return dataclasses.replace(tasks, parameters={"classes": torch.zeros(7)})


def fixed(tasks: Any) -> Any:
    return ITEMS.sample(3, "train", torch.Generator().manual_seed(0))


def other_globals(batch: Examples) -> Examples:
    random.random()
    return batch


def numpy_globals(batch: Examples) -> Examples:
    np.random.rand()  # noqa: NPY002
    return batch


def one_descriptor(tasks: Any) -> Any:
    return SimpleNamespace(parameters=tasks.parameters, descriptors=torch.ones_like(tasks.descriptors), draw=tasks.draw)


def resurrected(rollout: Rollout) -> Rollout:
    mask = rollout.mask.clone()
    mask[0, 0] = torch.tensor([1.0, 0.0, 1.0])
    return replace(rollout, mask=mask)


def drifting_tasks() -> Callable[..., Any]:
    seeds = iter(range(1000))
    return lambda tasks: ITEMS.sample(3, "train", torch.Generator().manual_seed(next(seeds)))


def noisy() -> Callable[..., Any]:
    seeds = iter(range(1000))
    return lambda batch: replace(batch, inputs=batch.inputs + next(seeds))


class Lenient(Broken):
    def sample(self, num_tasks: int, split: Any, generator: torch.Generator) -> Any:
        return super().sample(max(num_tasks, 1), split, generator)


class Column(Broken):
    """A family whose tasks depend on their number: what is drawn for the second parameter begins after the first."""

    def sample(self, num_tasks: int, split: Any, generator: torch.Generator) -> Any:
        tasks = self.family.sample(num_tasks, split, generator)
        slopes = torch.rand(num_tasks, generator=generator)
        return dataclasses.replace(tasks, parameters={"slope": slopes})


class Limited(Broken):
    def sample(self, num_tasks: int, split: Any, generator: torch.Generator) -> Any:
        if num_tasks > 5:
            raise ValueError("there are 5 tasks")
        return super().sample(num_tasks, split, generator)


@dataclasses.dataclass(frozen=True)
class Shared:
    """Tasks whose points are drawn for all of them, item by item."""

    tasks: Any

    @property
    def parameters(self) -> dict[str, Tensor]:
        return self.tasks.parameters

    @property
    def descriptors(self) -> Tensor:
        return self.tasks.descriptors

    def draw(self, role: Any, generator: torch.Generator) -> Examples:
        inputs = torch.rand(2, len(self.descriptors), 1, generator=generator).movedim(0, 1)
        return Examples(inputs=inputs, targets=self.parameters["slope"][:, None, None] * inputs)


class Interleaved(Broken):
    def sample(self, num_tasks: int, split: Any, generator: torch.Generator) -> Any:
        return Shared(self.family.sample(num_tasks, split, generator))


class Leaking(Broken):
    """A family whose splits are one."""

    def sample(self, num_tasks: int, split: Any, generator: torch.Generator) -> Any:
        return self.family.sample(num_tasks, "train", generator)


class Mixed(Broken):
    def sample(self, num_tasks: int, split: Any, generator: torch.Generator) -> Any:
        tasks = self.family.sample(num_tasks, split, generator)
        return Centred(tasks, tasks.parameters)


@dataclasses.dataclass(frozen=True)
class Centred:
    """Tasks whose targets depend on all tasks."""

    tasks: Any
    parameters: dict[str, Tensor]

    @property
    def descriptors(self) -> Tensor:
        return self.parameters["slope"].unsqueeze(-1)

    def draw(self, role: Any, generator: torch.Generator) -> Examples:
        drawn = dataclasses.replace(self.tasks, parameters=self.parameters).draw(role, generator)
        return replace(drawn, targets=drawn.targets - drawn.targets.mean(0))


def test_whole_plugins_pass() -> None:
    testing.check_family(ITEMS)
    testing.check_family(BANDIT)
    testing.check_family(LINES)
    testing.check_algorithm(ALGORITHM, ITEMS)
    testing.check_algorithm(ALGORITHM, BANDIT)


@pytest.mark.parametrize(
    ("family", "check", "message"),
    [
        (Broken(spec=Spec((3,), 3, "guesswork")), "spec", "spec.kind is 'guesswork'"),  # type: ignore[arg-type]
        (Broken(spec=Spec((3,), 0, "classification")), "spec", "has a size below 1"),
        (Broken(spec=Spec((3,), 3, "classification", -1)), "spec", "negative descriptor_size"),
        (
            Broken(spec=Spec((3,), 3, "classification", 2)),
            "tasks",
            r"descriptors: found torch.float32 \(3, 0\), expected torch.float32 \(3, 2\)",
        ),
        (Broken(sample=longer), "tasks", "the task parameter 'classes' has 7 rows for 3 tasks"),
        (Lenient(), "refusal", "expected a ValueError for fewer than one"),
        (Broken(sample=unseeded), "seeding", "sampling tasks drew from a global generator"),
        (Broken(sample=fixed), "seeding", "the tasks of 5 seeds are the same"),
        (Broken(sample=drifting_tasks()), "seeding", "'classes' of two samples with the same seed differ"),
        (
            Column(LINES),
            "number",
            r"of 3 tasks and of 7, the first 3 should be the same, but 'slope' and 'descriptors' differ: draw all "
            r"random numbers of a task in one row, by metarl.seeding.uniform\(generator, num_tasks, how_many\), or "
            r"each task's from a generator of its own, by metarl.seeding.spawn\(generator, num_tasks\)",
        ),
        (
            Interleaved(LINES),
            "number",
            "the first 3 should be the same, but their support data differ: draw all random",
        ),
        (Broken(LINES, sample=one_descriptor), "descriptors", "tasks with different parameters all have the same"),
        (
            Broken(spec=Spec((4,), 3, "classification")),
            "draws",
            r"inputs: found .* \(3, 3, 3\), .* \(3, 3, 4\)",
        ),
        (Broken(spec=Spec((3,), 2, "classification")), "draws", r"there are targets \[2\]: expected 0 to 1"),
        (Broken(spec=Spec((3,), 3, "regression")), "draws", "targets: found"),
        (Broken(spec=Spec((3,), 3, "discrete")), "draws", r"has no rollout\(policy, generator\)"),
        (
            Broken(draw=lambda batch: replace(batch, inputs=batch.inputs.double())),
            "draws",
            "inputs: found torch.float64",
        ),
        (
            Broken(draw=lambda batch: replace(batch, inputs=batch.inputs / 0)),
            "draws",
            "inputs: found numbers",
        ),
        (Broken(draw=lambda batch: replace(batch, targets=batch.targets.int())), "draws", "targets: found"),
        (Broken(draw=lambda batch: by_hand(*[batch.inputs] * 6)), "draws", "drew Rollout: expected Examples"),
        (Broken(BANDIT, draw=lambda batch: replace(batch, actions=batch.actions / 1)), "draws", "actions: found"),
        (Broken(draw=other_globals), "determinism", "drawing data drew from a global generator"),
        (Broken(draw=numpy_globals), "determinism", "drawing data drew from a global generator"),
        (Broken(draw=noisy()), "determinism", "two draws of support data from equal tasks with the same seed differ"),
        (
            Broken(draw=lambda batch: replace(batch, inputs=0 * batch.inputs)),
            "splits",
            "tasks are also test tasks",
        ),
        (
            Mixed(LINES),
            "independence",
            "changing the parameters of the last task changes",
        ),
        (Leaking(), "splits", "some train and validation tasks are also test tasks: hold tasks out"),
        (
            Broken(draw=lambda batch: replace(batch, inputs=batch.inputs.float())),
            "dtypes",
            "with torch.float64 as",
        ),
        (Broken(BANDIT, draw=resurrected), "mask", "mask rises within an episode"),
        (Broken(BANDIT, draw=lambda batch: replace(batch, mask=batch.mask / 2)), "mask", "numbers other than 0 and 1"),
        (
            Broken(BANDIT, draw=lambda batch: replace(batch, mask=0 * batch.mask)),
            "mask",
            "there are rewards",
        ),
        (Broken(BANDIT, draw=lambda batch: replace(batch, mask=0 * batch.mask)), "mask", "mask begins with 0"),
    ],
)
def test_broken_families_are_found_by_one_check(family: Any, check: str, message: str) -> None:
    state = torch.get_rng_state()
    found = failures(testing.family_outcomes(family))
    assert set(found) == {check}
    assert re.search(message, found[check])
    torch.set_rng_state(state)


def test_all_that_fails_is_told_at_once() -> None:
    family = Lenient(draw=lambda batch: replace(batch, inputs=batch.inputs.double(), targets=batch.targets.int()))
    with pytest.raises(ContractError) as caught:
        testing.check_family(family)
    told = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in told] == ["refusal", "draws", "draws"]
    assert re.search(r"sample\(0, ...\) returned tasks.* \(\S*test_checks.py:\d+, Lenient.sample\)$", told[0])
    assert told[1].startswith("draws: inputs: found torch.float64")
    assert told[2].startswith("draws: targets: found torch.int32")


def test_what_a_family_raises_is_told_with_its_line() -> None:
    def broken(batch: Examples) -> Examples:
        return batch.no_such_field  # type: ignore[attr-defined, no-any-return]

    line = broken.__code__.co_firstlineno + 1
    with pytest.raises(ContractError, match=rf"draws: AttributeError: .*test_checks.py:{line}, .*broken\)") as caught:
        testing.check_family(Broken(draw=broken))
    assert isinstance(caught.value.__cause__, AttributeError)


def test_a_family_without_test_tasks_is_told_of() -> None:
    labels = torch.arange(60) % 20
    family = NWayKShot(ITEMS.inputs, labels, ways=3, classes={"train": range(20)})
    outcomes = {outcome.check: outcome for outcome in testing.family_outcomes(family)}
    assert not failures(list(outcomes.values()))
    assert outcomes["tasks"].verdict == "note"
    assert outcomes["tasks"].messages[1].startswith("the family has no test tasks: ")
    assert outcomes["splits"].verdict == "skipped"


def test_rounding_may_depend_on_the_number_of_tasks() -> None:
    """Functions are computed several numbers at a time, the last ones otherwise."""

    def rounded(batch: Examples) -> Examples:
        last = batch.targets.flatten()[-3:]
        return replace(batch, targets=batch.targets.flatten().index_copy(
            0, torch.arange(batch.targets.numel())[-3:], last * (1 + torch.finfo(last.dtype).eps)
        ).reshape(batch.targets.shape))  # fmt: skip

    outcomes = {outcome.check: outcome for outcome in testing.family_outcomes(Broken(LINES, draw=rounded))}
    assert outcomes["number"].verdict == "ok"


def test_a_family_of_few_tasks_cannot_be_asked_for_more() -> None:
    outcomes = {outcome.check: outcome for outcome in testing.family_outcomes(Limited(LINES))}
    assert outcomes["number"].verdict == "skipped"
    assert outcomes["number"].messages == ("the family has no 7 train tasks: there are 5 tasks",)


def test_tasks_that_all_draw_the_same_are_noted() -> None:
    family = Regression(lambda inputs, slope: inputs, {"slope": (-1.0, 1.0)}, shots=2)
    outcomes = {outcome.check: outcome for outcome in testing.family_outcomes(family)}
    assert outcomes["independence"].verdict == "note"
    assert "changing a task's parameters did not change its data" in outcomes["independence"].messages[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_data_on_another_device_than_the_generators_are_found() -> None:
    family = Broken(draw=lambda batch: replace(batch, inputs=batch.inputs.cpu()))
    assert set(failures(testing.family_outcomes(family))) == {"device"}


def changed(change: Callable[[Learner], Learner]) -> Any:
    return SimpleNamespace(build=lambda spec: change(ALGORITHM.build(spec)))


def seeing_all(learner: Learner) -> Learner:
    """A learner whose tasks share the mean of their outputs."""

    def predict(state: Any, inputs: Tensor) -> Any:
        outputs, state = learner.predict(state, inputs)
        return outputs + outputs.mean(0, keepdim=True), state

    return learner._replace(predict=predict)


def counting(learner: Learner) -> Learner:
    """A learner that treats the first task unlike the second."""

    def predict(state: Any, inputs: Tensor) -> Any:
        outputs, state = learner.predict(state, inputs)
        return outputs + torch.arange(len(outputs)).reshape(-1, 1, 1), state

    return learner._replace(predict=predict)


def ordered(learner: Learner) -> Learner:
    """A learner whose meta-loss weighs tasks by their place."""

    def meta_loss(params: Params, experience: Any) -> Any:
        loss, metrics = learner.meta_loss(params, experience)
        return loss + experience.query.inputs[0, 0, 0], metrics

    return learner._replace(meta_loss=meta_loss)


def writing(learner: Learner) -> Learner:
    def adapt(state: Any, batch: Any) -> Any:
        batch.inputs.clamp_(max=0)
        return learner.adapt(state, batch)

    return learner._replace(adapt=adapt)


def with_loss(change: Callable[[Tensor, Params], Tensor], told: bool = True) -> Any:
    def changes(learner: Learner) -> Learner:
        def meta_loss(params: Params, experience: Any) -> Any:
            loss, metrics = learner.meta_loss(params, experience)
            return change(loss, params), metrics if told else {}

        return learner._replace(meta_loss=meta_loss)

    return changed(changes)


def initial(params: Callable[[torch.Generator], Params]) -> Any:
    return changed(lambda learner: learner._replace(init=params))


def with_outputs(change: Callable[[Tensor], Tensor]) -> Any:
    def changes(learner: Learner) -> Learner:
        return learner._replace(predict=lambda state, inputs: (change(learner.predict(state, inputs)[0]), state))

    return changed(changes)


def drifting() -> Callable[[Tensor], Tensor]:
    steps = iter(range(1000))
    return lambda values: values + next(steps)


@pytest.mark.parametrize(
    ("algorithm", "check", "message"),
    [
        (
            changed(lambda learner: learner._replace(spec=Spec((3,), 4, "regression"))),
            "build",
            "the learner's spec is Spec.* built",
        ),
        (initial(lambda rng: {"w": torch.rand(3)}), "initialisation", "initialisation drew from a global generator"),
        (initial(lambda rng: {"w": torch.ones(3)}), "initialisation", "with two seeds are the same"),
        (with_outputs(lambda outputs: outputs[..., :1]), "outputs", r"outputs: found torch.float32 \(4, 3, 1\)"),
        (with_outputs(drifting()), "determinism", "outputs after the same adaptations differ"),
        (
            with_loss(lambda loss, params: loss + random.random()),
            "determinism",
            "learning drew from a global",
        ),
        (changed(writing), "purity", "the learner changed its parameters or its data in place"),
        (with_loss(lambda loss, params: 0 * loss), "meta-loss", "the meta-gradient is zero"),
        (with_loss(lambda loss, params: loss.mean()), "meta-loss", "the meta-loss: found"),
        (with_loss(lambda loss, params: (loss - loss).sqrt()), "meta-loss", "the meta-gradient of .* is not finite"),
        (
            with_loss(lambda loss, params: loss, told=False),
            "scores",
            "the metrics of the meta-loss are nothing: expected also loss",
        ),
        (changed(counting), "order", "reversing the order of the tasks does not reverse that of the outputs"),
        (changed(ordered), "order", "the order of the tasks changes the meta-loss"),
        (changed(seeing_all), "independence", "changing the support data of one task changes another's outputs"),
        (
            with_outputs(lambda outputs: outputs.float()),
            "dtypes",
            "with torch.float64 as torch's default, outputs",
        ),
    ],
)
def test_broken_algorithms_are_found_by_one_check(algorithm: Any, check: str, message: str) -> None:
    found = failures(testing.algorithm_outcomes(algorithm, ITEMS))
    assert set(found) == {check}
    assert re.search(message, found[check])


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_an_objective_that_the_outer_update_would_not_train_is_found(kind: Any) -> None:
    found = failures(testing.algorithm_outcomes(with_loss(lambda loss, params: -loss), testing.small_family(kind)))
    assert set(found) == {"objective"}
    assert re.search(
        r"trpo makes the .* the cosine of their gradients is -1, .* \(\S*test_checks.py", found["objective"]
    )
    by_adam = with_loss(lambda loss, params: -loss)
    by_adam.default_outer = Adam
    assert not failures(testing.algorithm_outcomes(by_adam, testing.small_family(kind)))


class Unnamed(nn.Module):
    """Batch norm that no module tells of."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(*spec.input_shape, 8), nn.Linear(8, spec.model_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(functional.batch_norm(self.layer(inputs), None, None, training=True).tanh())


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_a_policy_that_replays_otherwise_than_it_acts_is_found(kind: Any) -> None:
    algorithm = MAML(network=Network(Unnamed))
    found = failures(testing.algorithm_outcomes(algorithm, testing.small_family(kind)))
    assert set(found) == {"replay"}
    told = re.search(r"their ratios should be 1, but range from (\S+) to (\S+);", found["replay"])
    assert told and float(told[1]) < 0.99 and float(told[2]) > 1.01
    testing.check_algorithm(algorithm, testing.small_family("classification"))


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("algorithm", [ALGORITHM, RL2(hidden=4), MAML(steps=2, network=Network(hidden=(4,)))], ids=str)
def test_policies_replay_as_they_acted(algorithm: Any, kind: Any) -> None:
    outcomes = {found.check: found for found in testing.algorithm_outcomes(algorithm, testing.small_family(kind))}
    assert not failures(list(outcomes.values()))
    assert outcomes["replay"].verdict == "ok"
    supervised = {found.check: found for found in testing.algorithm_outcomes(algorithm, ITEMS)}
    assert supervised["replay"].verdict == "skipped"


def test_what_an_algorithm_refuses_is_passed_on() -> None:
    from metarl.algorithms.protonet import ProtoNet

    with pytest.raises(ValueError, match="serves classification, not discrete"):
        testing.check_algorithm(ProtoNet(), BANDIT)


def test_data_drawn_in_groups_are_those_drawn_at_once() -> None:
    class Shifted(EpisodeTasks):
        def draw(self, *arguments: Any) -> Examples:
            return super().draw(*arguments)

        def draw_groups(self, role: Any, generator: torch.Generator, size: int) -> Any:
            for group, examples in enumerate(super().draw_groups(role, generator, size)):
                yield replace(examples, inputs=examples.inputs + group)

    def shifted(family: Any, *arguments: Any) -> Shifted:
        return Shifted(**vars(family.sample(*arguments)))

    family = SimpleNamespace(spec=ITEMS.spec, sample=partial(shifted, ITEMS))
    found = failures(testing.family_outcomes(family))
    assert set(found) == {"groups"}
    assert "draw_groups gives other support data than draw with the same generator" in found["groups"]
    assert "Shifted.draw_groups" in found["groups"]

"""The contracts find what is broken: each case breaks one promise of a plugin that keeps the others."""

import dataclasses
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import testing
from metarl.algorithms.maml import MAML
from metarl.control import Sampling
from metarl.families import NWayKShot
from metarl.networks import Network
from metarl.testing import ContractError
from metarl.types import Examples, Learner, Params, Rollout, Spec
from metarl_envs.bandit import Bandit

ITEMS = NWayKShot(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 20, ways=3)
BANDIT = Bandit(arms=3, sampling=Sampling(episodes=2, horizon=3))
ALGORITHM = MAML(network=Network(hidden=(4,), activation="tanh"))


class Broken:
    """A family whose tasks, or what is drawn from them, are changed on the way; its spec too, where one is told."""

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
        told = SimpleNamespace(parameters=tasks.parameters, descriptors=tasks.descriptors)
        told.draw = lambda *arguments: self.changed_batch(tasks.draw(*arguments))
        return told


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


def resurrected(rollout: Rollout) -> Rollout:
    mask = rollout.mask.clone()
    mask[0, 0] = torch.tensor([1.0, 0.0, 1.0])
    return rollout._replace(mask=mask)


def test_whole_plugins_pass() -> None:
    testing.check_family(ITEMS)
    testing.check_family(BANDIT)
    testing.check_algorithm(ALGORITHM, ITEMS)
    testing.check_algorithm(ALGORITHM, BANDIT)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (Broken(spec=Spec((3,), 3, "guesswork")), "spec.kind is 'guesswork'"),  # type: ignore[arg-type]
        (Broken(spec=Spec((3,), 0, "classification")), "has a size below 1"),
        (Broken(spec=Spec((3,), 3, "classification", -1)), "negative descriptor_size"),
        (
            Broken(spec=Spec((3,), 3, "classification", 2)),
            r"descriptors: found torch.float32 \(3, 0\), expected torch.float32 \(3, 2\)",
        ),
        (Broken(spec=Spec((4,), 3, "classification")), r"inputs: found torch.float32 \(3, 3, 3\), .* \(3, 3, 4\)"),
        (Broken(spec=Spec((3,), 2, "classification")), r"there are targets \[2\]: expected 0 to 1"),
        (Broken(spec=Spec((3,), 3, "regression")), "targets: found"),
        (Broken(spec=Spec((3,), 3, "discrete")), "a discrete family drew Examples: expected a Rollout"),
        (Broken(sample=unseeded), "sampling train tasks drew from a global generator"),
        (Broken(sample=longer), "the task parameter 'classes' has 7 rows for 3 tasks"),
        (Broken(sample=fixed), "the tasks of 5 seeds are the same"),
        (Broken(draw=other_globals), "drawing support data drew from a global generator"),
        (Broken(draw=numpy_globals), "drawing support data drew from a global generator"),
        (Broken(draw=lambda batch: batch._replace(inputs=batch.inputs.double())), "inputs: found torch.float64"),
        (
            Broken(draw=lambda batch: batch._replace(inputs=batch.inputs / 0)),
            "inputs: found numbers that are not finite",
        ),
        (Broken(draw=lambda batch: batch._replace(targets=batch.targets.int())), "targets: found"),
        (Broken(draw=lambda batch: Rollout(*[batch.inputs] * 6)), "drew Rollout: expected Examples"),
        (Broken(BANDIT, draw=resurrected), "mask rises within an episode"),
        (Broken(BANDIT, draw=lambda batch: batch._replace(mask=batch.mask / 2)), "other numbers than 0 and 1"),
        (Broken(BANDIT, draw=lambda batch: batch._replace(mask=0 * batch.mask)), "there are rewards after the end"),
        (Broken(BANDIT, draw=lambda batch: batch._replace(actions=batch.actions / 1)), "actions: found"),
    ],
)
def test_broken_families_are_found(family: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        testing.check_family(family)


def test_a_draw_that_does_not_follow_from_its_generator_is_found() -> None:
    state = torch.get_rng_state()
    seeds = iter(range(100))

    def noisy(batch: Examples) -> Examples:
        return batch._replace(inputs=batch.inputs + next(seeds))

    with pytest.raises(ContractError, match="two draws of support data by one seed differ"):
        testing.check_family(Broken(draw=noisy))
    assert torch.equal(torch.get_rng_state(), state)


def test_tasks_that_do_not_follow_from_their_generator_are_found() -> None:
    seeds = iter(range(100))

    def drifting(tasks: Any) -> Any:
        return ITEMS.sample(3, "train", torch.Generator().manual_seed(next(seeds)))

    with pytest.raises(ContractError, match="'classes' of two samples by one seed differ"):
        testing.check_family(Broken(sample=drifting))


def test_a_family_that_samples_no_tasks_is_found() -> None:
    class Lenient(Broken):
        def sample(self, num_tasks: int, split: Any, generator: torch.Generator) -> Any:
            return super().sample(max(num_tasks, 1), split, generator)

    with pytest.raises(ContractError, match="expected a ValueError for fewer than one"):
        testing.check_family(Lenient())


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


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (
            changed(lambda learner: learner._replace(spec=Spec((3,), 4, "regression"))),
            "the learner is for Spec.* built",
        ),
        (changed(lambda learner: learner._replace(init=lambda rng: {"w": torch.rand(3)})), "initialisation drew from"),
        (changed(lambda learner: learner._replace(init=lambda rng: {"w": torch.ones(3)})), "by two seeds are the same"),
        (changed(seeing_all), "changing the support of one task changes another's outputs"),
        (changed(counting), "turning the order of the tasks does not turn that of the outputs"),
        (changed(ordered), "the order of the tasks changes the meta-loss"),
        (changed(writing), "the learner wrote into its parameters or its data"),
        (with_loss(lambda loss, params: 0 * loss), "the meta-gradient is zero"),
        (with_loss(lambda loss, params: loss.reshape(1)), "the meta-loss: found"),
        (with_loss(lambda loss, params: (loss - loss).sqrt()), "the meta-gradient of .* is not finite"),
        (with_loss(lambda loss, params: loss, told=False), "the meta-loss tells nothing: expected loss/step_k"),
    ],
)
def test_broken_algorithms_are_found(algorithm: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        testing.check_algorithm(algorithm, ITEMS)


def test_what_an_algorithm_refuses_is_passed_on() -> None:
    from metarl.algorithms.protonet import ProtoNet

    with pytest.raises(ValueError, match="serves classification, not discrete"):
        testing.check_algorithm(ProtoNet(), BANDIT)

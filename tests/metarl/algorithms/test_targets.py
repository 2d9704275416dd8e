"""Tasks of one batch with losses of their own: closed forms, weights, refusals, and a family that mixes them."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from support import synthetic
from torch.nn import functional

import metarl
from metarl import objectives, plugins
from metarl.algorithms.multitask import MultiTask
from metarl.networks.options import Network
from metarl.seeding import uniform
from metarl.testing import ContractError, check_algorithm, check_family
from metarl.types import Examples, Experience, Learner, Params, Spec, Targets, select

float64 = pytest.mark.usefixtures("float64")
PARTS = (Targets("numbers", 2), Targets("classes", 3), Targets("labels", 2))
SPEC = Spec((3,), 7, "regression", descriptor_size=3, targets=PARTS)
PLACES = (slice(0, 2), slice(2, 5), slice(5, 7))
METRIC = ["matching", "protonet", "siamese"]
OTHERS = ["bmaml", "cavia", "imaml", "leap", "maml", "mann", "meta-lstm", "reptile", "rl2", "snail"]
SMALL = Network(hidden=(5,), activation="tanh")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def query(tasks: int = 3, items: int = 4) -> Examples:
    """Task k has numbers, classes or labels, one after another."""
    inputs = torch.randn(tasks, items, 3, generator=generator())
    values = torch.randn(tasks, items, 7, generator=generator(1))
    targets = torch.zeros_like(values)
    for task in range(tasks):
        place, own = PLACES[task % 3], values[task, :, PLACES[task % 3]]
        found = (own, functional.one_hot(own.argmax(-1), own.shape[-1]), own > 0)
        targets[task, :, place] = found[task % 3].to(values.dtype)
    return Examples(inputs=inputs, targets=targets)


def experience(tasks: int = 3) -> Experience:
    return Experience(descriptors=torch.eye(3)[torch.arange(tasks) % 3], supports=(), query=query(tasks))


def made(**options: object) -> tuple[Learner, Params]:
    learner = MultiTask(network=SMALL, **options).build(SPEC)  # type: ignore[arg-type]
    return learner, synthetic.initial(learner)


def by_torch(outputs: torch.Tensor, examples: Examples) -> torch.Tensor:
    losses = []
    for task, (said, wanted) in enumerate(zip(outputs, examples.targets, strict=True)):
        said, wanted = said[:, PLACES[task % 3]], wanted[:, PLACES[task % 3]]
        of_kind = (
            functional.mse_loss,
            lambda said, wanted: functional.cross_entropy(said, wanted.argmax(-1)),
            functional.binary_cross_entropy_with_logits,
        )
        losses.append(of_kind[task % 3](said, wanted))
    return torch.stack(losses)


@float64
def test_each_task_has_the_loss_of_its_targets() -> None:
    given, outputs = query(6), torch.randn(6, 4, 7, generator=generator(2))
    descriptors = torch.eye(3).repeat(2, 1)
    found = objectives.targeted_loss(SPEC, descriptors, outputs, given)
    torch.testing.assert_close(found, by_torch(outputs, given))
    at_zero = objectives.targeted_loss(SPEC, descriptors, torch.zeros(6, 4, 7), given)
    torch.testing.assert_close(at_zero[[1, 4, 2, 5]], torch.tensor([3.0, 3.0, 2.0, 2.0]).log())
    torch.testing.assert_close(at_zero[0], given.targets[0, :, :2].square().mean())
    learner, params = made()
    losses, metrics = learner.meta_loss(params, experience(6))
    outputs, _ = learner.predict(learner.begin(params, descriptors), given.inputs)
    torch.testing.assert_close(losses, by_torch(outputs, given))
    torch.testing.assert_close(metrics, {"loss/step_0": losses})


@float64
def test_outputs_of_other_tasks_do_not_count() -> None:
    learner, params = made()
    params = {name: value.requires_grad_() for name, value in params.items()}
    for task, place in enumerate(PLACES):
        losses, _ = learner.meta_loss(params, experience())
        (slope,) = torch.autograd.grad(losses[task], [params["head.bias"]])
        assert slope[place].abs().min() > 0
        assert slope.abs().sum() == slope[place].abs().sum()


@float64
def test_padding_does_not_count() -> None:
    given, outputs = query(3, items=4), torch.randn(3, 4, 7, generator=generator(2))
    mask = torch.tensor([[1.0, 1, 0, 0]] * 3)
    padded = replace(given, targets=given.targets.masked_fill(mask.unsqueeze(-1) == 0, 7.0), mask=mask)
    short = Examples(inputs=given.inputs[:, :2], targets=given.targets[:, :2])
    found = objectives.targeted_loss(SPEC, torch.eye(3), outputs, padded)
    torch.testing.assert_close(found, objectives.targeted_loss(SPEC, torch.eye(3), outputs[:, :2], short))


@float64
def test_weights_are_those_of_each_loss() -> None:
    plain, params = made()
    given = experience()
    losses = plain.meta_loss(params, given)[0]
    learner, _ = made(weighting="fixed", task_weights=(1.0, 0.5, 4.0))
    torch.testing.assert_close(learner.meta_loss(params, given)[0], losses * torch.tensor([1.0, 0.5, 4.0]))
    # A normal's negative log-likelihood is smallest at the mean squared error, a softmax's at twice the cross-entropy.
    learner, _ = made(weighting="uncertainty")
    best = (losses * torch.tensor([1.0, 2.0, 2.0])).log().detach().requires_grad_()
    found, _ = learner.meta_loss(params | {"weighting:log_variances": best}, given)
    torch.testing.assert_close(found, 0.5 + 0.5 * best)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), best)[0], torch.zeros(3), atol=1e-12, rtol=0)


@float64
def test_fine_tuning_follows_the_tasks_own_loss() -> None:
    learner, params = made(step_size=0.5)
    given = experience()
    state = learner.begin(params, given.descriptors)
    assert isinstance(given.query, Examples)
    losses = []
    for _ in range(6):
        outputs, _ = learner.predict(state, given.query.inputs)
        losses.append(objectives.targeted_loss(SPEC, given.descriptors, outputs, given.query))
        state = learner.adapt(state, given.query)
    assert (losses[-1] < losses[0]).all()
    alone = learner.adapt(learner.begin(params, given.descriptors[1:2]), select(given.query, [1]))
    first = learner.adapt(learner.begin(params, given.descriptors), given.query)
    torch.testing.assert_close(alone.tuned.params["head.weight"][0], first.tuned.params["head.weight"][1])


@pytest.mark.parametrize(("task", "wrong"), [(1, 0.5), (1, -1.0), (2, 2.0), (2, -0.1)], ids=str)
def test_targets_of_another_kind_stop_training(task: int, wrong: float) -> None:
    learner, params = made()
    given = experience()
    assert isinstance(given.query, Examples)
    given.query.targets[task, 0, PLACES[task].start] = wrong
    params = {name: value.requires_grad_() for name, value in params.items()}
    losses, _ = learner.meta_loss(params, given)
    assert losses.isnan().tolist() == [number == task for number in range(3)]
    slopes = torch.autograd.grad(losses.sum(), list(params.values()))
    assert all(slope.isnan().any() for slope in slopes)


@pytest.mark.parametrize("descriptor", [(0.0, 2.0, 0.0), (0.4, 0.6, 0.0), (0.0, 0.0, 0.0)], ids=str)
def test_no_kind_is_guessed_for_a_task_whose_descriptor_is_not_one_hot(descriptor: tuple[float, ...]) -> None:
    learner, params = made()
    given = experience()
    given.descriptors[1] = torch.tensor(descriptor)
    losses, metrics = learner.meta_loss(params, given)
    assert losses.isnan().tolist() == metrics["loss/step_0"].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"output_size": 8}, "sum of output_size=8, not of regression and 7"),
        ({"kind": "classification"}, "expected a spec of regression .*, not of classification and 7"),
        ({"descriptor_size": 2}, "are 3: expected one for each of descriptor_size=2 numbers"),
        ({"targets": (Targets("classes", 1), *PARTS[1:])}, "of 1 output at least, and 2 classes"),
        ({"targets": (Targets("pictures", 2), *PARTS[1:])}, "expected numbers, classes, labels"),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_specs_that_do_not_add_up_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(SPEC, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OTHERS)
def test_learners_of_one_loss_refuse_them(name: str) -> None:
    with pytest.raises(ValueError, match="one loss for all; use multitask"):
        plugins.load("algorithms", name)().build(SPEC)


@pytest.mark.parametrize("name", METRIC)
def test_learners_of_classes_name_the_one_that_serves_them(name: str) -> None:
    with pytest.raises(ValueError, match="use multitask, which takes each task's own loss"):
        plugins.load("algorithms", name)().build(SPEC)


def test_labels_are_stated_once() -> None:
    with pytest.raises(ValueError, match="the family says by its spec which of its targets are labels"):
        MultiTask(multi_label=True).build(SPEC)


@dataclass(frozen=True)
class Drawn:
    descriptors: torch.Tensor

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        return {"question": self.descriptors.argmax(-1)}

    def draw(self, role: str, generator: torch.Generator) -> Examples:
        points = 2 * uniform(generator, len(self.descriptors), 20, 2) - 1
        first = functional.one_hot((points[..., 0] > 0).long(), 2)
        answers = torch.cat([points.sum(-1, keepdim=True), first, points > 0], dim=-1)
        own = self.descriptors.repeat_interleave(torch.tensor([1, 2, 2]), dim=1)
        return Examples(inputs=points, targets=answers * own.unsqueeze(1))


@dataclass(frozen=True)
class Mixed:
    """The sum of two numbers; the sign of the first; the signs of both."""

    splits_share_tasks = True

    @property
    def spec(self) -> Spec:
        return Spec(
            (2,), 5, "regression", 3, targets=(Targets("numbers", 1), Targets("classes", 2), Targets("labels", 2))
        )

    def sample(self, num_tasks: int, split: str, generator: torch.Generator) -> Drawn:
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        which = (3 * uniform(generator, num_tasks, 1).squeeze(1)).long()
        return Drawn(functional.one_hot(which, 3).to(torch.get_default_dtype()))


class Doubled(Mixed):
    """Descriptors of 0 and 2."""

    def sample(self, num_tasks: int, split: str, generator: torch.Generator) -> Drawn:
        return Drawn(2 * super().sample(num_tasks, split, generator).descriptors)


def test_a_check_finds_descriptors_that_are_not_one_hot() -> None:
    with pytest.raises(ContractError, match="tells by a 1 among zeros which of"):
        check_family(Doubled())


def test_a_family_that_mixes_losses_is_learnt_and_scored_by_each() -> None:
    check_family(Mixed())
    check_algorithm(MultiTask(network=SMALL, weighting="gradnorm"), Mixed())
    network = MultiTask(network=Network(hidden=(20,)), weighting="uncertainty")
    result = metarl.train(network, Mixed(), metarl.Adam(0.02), metarl.Settings(iterations=150, meta_batch_size=6))
    found = metarl.evaluate(result.learner, result.params, Mixed(), tasks=12, steps=0)
    losses, question = found.scores["loss"][0], found.tasks.parameters["question"]
    for kind, untrained in enumerate((2 / 3, math.log(2), math.log(2))):
        assert losses[question == kind].mean() < 0.4 * untrained
    with pytest.raises(ValueError, match="reads its tasks' descriptors"):
        result.fit(torch.zeros(3, 2), torch.zeros(3, 5))

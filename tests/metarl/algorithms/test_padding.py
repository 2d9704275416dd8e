"""Padding of tasks with fewer examples changes nothing: every learner honours the mask, or refuses such tasks."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from metarl import plugins
from metarl.algorithms.shared.mini_batches import mini_batch
from metarl.networks import Network
from metarl.testing import ContractError, check_algorithm, small_family
from metarl.types import Examples, Experience, Learner, Params, Spec, check_served, pooled

SUPPORT, QUERY = torch.tensor([2, 5, 7]), torch.tensor([4, 1, 3])
"""Examples of each of three tasks."""
LEARNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "maml": ("maml", {"steps": 2}),
    "first-order": ("maml", {"first_order": True, "learn_step_sizes": True}),
    "reptile": ("reptile", {"batch_size": 3}),
    "replacement": ("reptile", {"batch_size": 2, "mini_batches": "replacement", "tail": "separate"}),
    "leap": ("leap", {"steps": 4, "batch_size": 3}),
    "imaml": ("imaml", {}),
    "cavia": ("cavia", {"steps": 2}),
    "bmaml": ("bmaml", {"particles": 3}),
    "meta-lstm": ("meta-lstm", {}),
    "multitask": ("multitask", {}),
    "snail": ("snail", {}),
    "rl2": ("rl2", {}),
    "rl2-lstm": ("rl2", {"cell": "torch.nn:LSTM", "loss_on": "query"}),
    "protonet": ("protonet", {}),
    "cosine": ("protonet", {"distance": "cosine", "embedding": 4}),
    "matching": ("matching", {}),
    "full-context": ("matching", {"full_context": True}),
    "siamese": ("siamese", {}),
}
CLASSIFIERS = ("protonet", "cosine", "matching", "full-context", "siamese")


def padded(kind: str, counts: Tensor, seed: int) -> Examples:
    """Examples of tasks of unequal size. What is in the padding is no zero, and must not matter."""
    generator, most = Generator().manual_seed(seed), int(counts.max())
    inputs = torch.randn(len(counts), most, 2, generator=generator)
    values = torch.randn(len(counts), most, 3, generator=generator)
    classes = torch.randint(3, (len(counts), most), generator=generator)
    mask = (torch.arange(most) < counts.unsqueeze(1)).to(inputs.dtype)
    return Examples(inputs=inputs, targets=classes if kind == "classification" else values, mask=mask)


def alone(examples: Examples, task: int) -> Examples:
    count = int(examples.counts[task])
    return Examples(inputs=examples.inputs[task, None, :count], targets=examples.targets[task, None, :count])


def tensors(state: Any, task: int | slice) -> list[Tensor]:
    """What a gradient learner has adapted, of one task."""
    params = getattr(state, "params", getattr(state, "particles", None) or getattr(state, "tuned", None))
    params = getattr(params, "params", params)
    return [value[task] for value in getattr(state, "networks", params).values()]


def learners(name: str, kind: Any) -> tuple[Learner, Learner]:
    plugin, options = LEARNERS[name]
    algorithm = plugins.load("algorithms", plugin)(**options)
    ragged, plain = (algorithm.build(Spec((2,), 3, kind, ragged=ragged)) for ragged in (True, False))
    return ragged, plain


CASES = [
    (name, kind)
    for name in LEARNERS
    for kind in ("classification", "regression")
    if kind == "classification" or name not in CLASSIFIERS
]


@pytest.fixture(autouse=True)
def _float64() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_padded_batch_gives_the_losses_and_gradients_of_its_tasks_one_by_one(name: str, kind: str) -> None:
    ragged, plain = learners(name, kind)
    support, query, none = padded(kind, SUPPORT, 1), padded(kind, QUERY, 2), torch.zeros(3, 0)
    params = {key: value.requires_grad_() for key, value in ragged.init(Generator().manual_seed(0)).items()}
    supports = (support,) * ragged.adaptations
    losses, metrics = ragged.meta_loss(params, Experience(descriptors=none, supports=supports, query=query))
    gradients = torch.autograd.grad(losses.sum(), list(params.values()), materialize_grads=True)
    found = []
    for task in range(3):
        one = (alone(support, task),) * plain.adaptations
        found.append(plain.meta_loss(params, Experience(descriptors=none[:1], supports=one, query=alone(query, task))))
    torch.testing.assert_close(losses, torch.cat([loss for loss, _ in found]))
    expected = torch.autograd.grad(sum(loss.sum() for loss, _ in found), list(params.values()), materialize_grads=True)
    torch.testing.assert_close(gradients, expected)
    for key, values in metrics.items():
        torch.testing.assert_close(values, torch.cat([told[key] for _, told in found]))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_padded_batch_adapts_as_its_tasks_do_one_by_one(name: str, kind: str) -> None:
    ragged, plain = learners(name, kind)
    first, second, query = padded(kind, SUPPORT, 1), padded(kind, QUERY, 3), padded(kind, QUERY, 2)
    params = ragged.init(Generator().manual_seed(0))
    with torch.no_grad():
        state = ragged.begin(params, torch.zeros(3, 0))
        for support in (first, second):
            state = ragged.adapt(state, support)
        outputs, _ = ragged.predict(state, query.inputs)
        for task in range(3):
            one = plain.begin(params, torch.zeros(1, 0))
            for support in (first, second):
                one = plain.adapt(one, alone(support, task))
            torch.testing.assert_close(outputs[task, None], plain.predict(one, query.inputs[task, None])[0])
            if name in ("maml", "first-order", "reptile", "leap", "imaml", "bmaml", "meta-lstm", "cavia", "multitask"):
                torch.testing.assert_close(tensors(state, task), tensors(one, 0))


def test_a_learner_that_would_take_padding_for_examples_refuses_such_tasks() -> None:
    spec = Spec((2,), 3, "classification", ragged=True)
    with pytest.raises(ValueError, match=r"are padded: this learner would take the padding for examples"):
        plugins.load("algorithms", "mann")().build(spec)
    normalised = Network(normalise=True)
    for name in ("maml", "protonet", "reptile", "snail", "matching", "bmaml"):
        with pytest.raises(ValueError, match=r"are padded: batch norm would count the padding"):
            plugins.load("algorithms", name)(network=normalised).build(spec)
    with pytest.raises(ValueError, match="would take the padding"):
        check_served(plugins.load("algorithms", "mann")().build(Spec((2,), 3, "regression")), spec)


def test_convolutional_networks_of_layer_norm_honour_the_mask() -> None:
    spec = Spec((1, 16, 16), 3, "classification", ragged=True)
    learner = plugins.load("algorithms", "maml")(network=Network(architecture="conv4", norm="layer")).build(spec)
    assert learner.masked
    with pytest.raises(ValueError, match="norm layer"):
        plugins.load("algorithms", "maml")(network=Network(architecture="conv4")).build(spec)


class Centred(torch.nn.Module):
    """Subtracts the mean of all items: padding would move it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(2, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(inputs - inputs.mean(0))
        return outputs


def test_a_network_that_reads_several_items_together_is_refused() -> None:
    network = Network(architecture=lambda spec: Centred())
    plugins.load("algorithms", "maml")(network=network).build(Spec((2,), 3, "regression"))
    with pytest.raises(ValueError, match="depends on the others"):
        plugins.load("algorithms", "maml")(network=network).build(Spec((2,), 3, "regression", ragged=True))


def test_examples_with_a_mask_are_looked_at_before_a_learner_adapts_to_them() -> None:
    learner = plugins.load("algorithms", "maml")().build(Spec((2,), 3, "regression"))
    state = learner.begin(learner.init(Generator().manual_seed(0)), torch.zeros(1, 0))
    wrong = Examples(inputs=torch.zeros(1, 2, 2), targets=torch.zeros(1, 2, 3), mask=torch.tensor([[0.0, 1.0]]))
    with pytest.raises(ValueError, match="begins with 0"):
        learner.adapt(state, wrong)
    with pytest.raises(ValueError, match=r"the mask has shape \(1, 3\)"):
        learner.adapt(state, Examples(inputs=wrong.inputs, targets=wrong.targets, mask=torch.ones(1, 3)))
    mann = plugins.load("algorithms", "mann")().build(Spec((2,), 3, "regression"))
    state = mann.begin(mann.init(Generator().manual_seed(0)), torch.zeros(1, 0))
    with pytest.raises(ValueError, match="would take the padding"):
        mann.adapt(state, Examples(inputs=wrong.inputs, targets=wrong.targets, mask=torch.ones(1, 2)))


def test_pooled_batches_have_their_padding_at_the_end() -> None:
    one, other = padded("regression", SUPPORT, 1), padded("regression", QUERY, 2)
    both = pooled([one, other])
    assert both.counts.tolist() == (SUPPORT + QUERY).tolist()
    for task in range(3):
        expected = pooled([alone(one, task), alone(other, task)])
        assert torch.equal(alone(both, task).inputs, expected.inputs)
        assert torch.equal(alone(both, task).targets, expected.targets)


def test_mini_batches_of_padded_tasks_go_through_all_of_their_items() -> None:
    support = padded("classification", SUPPORT, 1)
    seen: list[set[float]] = [set(), set(), set()]
    for step in range(3):
        chosen = mini_batch(support, "cycle", 3, step)
        assert chosen.counts.tolist() == [2, 3, 3]
        for task in range(3):
            seen[task] |= set(alone(chosen, task).inputs[0, :, 0].tolist())
    for task in range(3):
        assert seen[task] == set(alone(support, task).inputs[0, :, 0].tolist())


@dataclass(frozen=True)
class Careless:
    """MAML that says it honours the mask, and does not."""

    def build(self, spec: Spec) -> Learner:
        learner = plugins.load("algorithms", "maml")().build(spec)

        def meta_loss(params: Params, experience: Experience) -> Any:
            changed = replace(experience, query=replace(experience.query, mask=None))
            return learner.meta_loss(params, changed)

        return learner._replace(meta_loss=meta_loss)


def test_the_contract_finds_a_learner_that_counts_padding() -> None:
    with pytest.raises(ContractError, match="padding changes the meta-loss, though the learner is masked"):
        check_algorithm(Careless(), small_family("regression"))

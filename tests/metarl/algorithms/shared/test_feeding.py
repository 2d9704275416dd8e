"""Items that a user feeds a learner by hand are what the family would have drawn, or are refused in its terms."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl.algorithms.gradient.bmaml import BMAML
from metarl.algorithms.gradient.cavia import CAVIA
from metarl.algorithms.gradient.imaml import IMAML
from metarl.algorithms.gradient.leap import Leap
from metarl.algorithms.maml import MAML
from metarl.algorithms.mann import MANN
from metarl.algorithms.multitask import MultiTask
from metarl.algorithms.protonet import ProtoNet
from metarl.algorithms.reptile import Reptile
from metarl.algorithms.rl2 import RL2
from metarl.algorithms.shared import feeding
from metarl.algorithms.snail import SNAIL
from metarl.fewshot import NWayKShot
from metarl.networks import Network
from metarl.types import Examples, Learner, Spec

SPEC = Spec((1, 6, 6), 3, "classification")
NETWORK = Network(hidden=(4,))
ALGORITHMS = [
    MAML(network=NETWORK),
    Reptile(network=NETWORK),
    MultiTask(network=NETWORK),
    ProtoNet(network=NETWORK),
    MANN(slots=8, width=3, controller=5),
    SNAIL(network=NETWORK),
    RL2(),
    CAVIA(network=NETWORK),
    IMAML(network=NETWORK),
    BMAML(particles=2, network=NETWORK),
    Leap(network=NETWORK),
]
TARGETS = torch.tensor([[0, 1, 2, 0], [2, 1, 0, 1]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(items: int = 4, most: int = 255) -> Tensor:
    return torch.randint(most + 1, (2, items, 1, 6, 6), dtype=torch.uint8, generator=generator())


def outputs(learner: Learner, support: Examples, query: Tensor) -> Tensor:
    state = learner.begin(learner.init(generator()), torch.zeros(2, 0))
    return learner.predict(learner.adapt(state, support), query)[0].detach()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda one: type(one).__name__)
def test_bytes_are_read_as_the_family_reads_them(algorithm: Any) -> None:
    learner = algorithm.build(SPEC)
    expected = outputs(learner, Examples(inputs=pixels() / 255, targets=TARGETS), pixels(5) / 255)
    assert torch.equal(outputs(learner, Examples(inputs=pixels(), targets=TARGETS), pixels(5)), expected)
    assert torch.equal(
        outputs(learner, Examples(inputs=pixels(), targets=TARGETS.to(torch.uint8)), pixels(5)), expected
    )
    masks = pixels(4, 1), pixels(5, 1)
    expected = outputs(learner, Examples(inputs=masks[0].float(), targets=TARGETS), masks[1].float())
    assert torch.equal(outputs(learner, Examples(inputs=masks[0], targets=TARGETS), masks[1]), expected)


def test_numbers_are_not_scaled() -> None:
    learner = MAML(network=NETWORK).build(Spec((3,), 1, "regression"))
    ages = torch.randint(18, 90, (2, 4, 3), dtype=torch.uint8, generator=generator())
    targets = torch.arange(8).reshape(2, 4, 1)
    expected = outputs(learner, Examples(inputs=ages.float(), targets=targets.float()), ages.float())
    assert torch.equal(outputs(learner, Examples(inputs=ages, targets=targets), ages), expected)


def test_what_a_family_draws_is_handed_on_as_it_is() -> None:
    family = NWayKShot(torch.randn(60, 1, 6, 6, generator=generator()), torch.arange(60) % 12, ways=3, shots=2)
    batch = family.sample(2, "train", generator()).draw("support", generator())
    assert feeding._examples(ProtoNet().build(family.spec), batch) is batch


CLASSES = torch.zeros(2, 4, dtype=torch.long)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (
            torch.zeros(2, 4, 1, 5, 6),
            CLASSES,
            r"\(2, 4, 1, 5, 6\): the learner was built for items \(1, 6, 6\), \[ta",
        ),
        (torch.zeros(2, 4, 3, 6, 6), CLASSES, r"inputs have shape .* items \(1, 6, 6\), \[task, item, 1, 6, 6\]"),
        (torch.zeros(2, 4, 36), CLASSES, r"inputs have shape \(2, 4, 36\)"),
        (torch.zeros(4, 1, 6, 6), CLASSES[0], r"inputs have shape \(4, 1, 6, 6\)"),
        (torch.zeros(1, 2, 4, 1, 6, 6), CLASSES[None], r"inputs have shape \(1, 2, 4, 1, 6, 6\)"),
        (torch.zeros(2, 4, 1, 6, 6), CLASSES + 3, "targets name the classes 3 to 3: a task has 3, numbered 0 to 2"),
        (torch.zeros(2, 4, 1, 6, 6), CLASSES - 1, "targets name the classes -1 to -1"),
        (
            torch.zeros(2, 4, 1, 6, 6),
            CLASSES.float(),
            r"targets are torch.float32 of shape \(2, 4\): expected the c",
        ),
        (
            torch.zeros(2, 4, 1, 6, 6),
            CLASSES[:, :3],
            r"targets are torch.int64 of shape \(2, 3\): expected the c",
        ),
        (np.zeros((2, 4, 1, 6, 6)), CLASSES, "inputs: found ndarray, expected a tensor"),
    ],
)
def test_items_of_another_kind_are_refused(algorithm: Any, inputs: Any, targets: Tensor, message: str) -> None:
    learner = algorithm.build(SPEC)
    state = learner.begin(learner.init(generator()), torch.zeros(2, 0))
    with pytest.raises(ValueError, match=message):
        learner.adapt(state, Examples(inputs=inputs, targets=targets))
    if not message.startswith("targets") and inputs.ndim < 6:
        with pytest.raises(ValueError, match=message):
            learner.predict(state, inputs)


def test_targets_of_another_width_are_refused() -> None:
    learner = MAML(network=NETWORK).build(Spec((3,), 2, "regression"))
    state = learner.begin(learner.init(generator()), torch.zeros(2, 0))
    with pytest.raises(ValueError, match=r"targets have shape \(2, 4, 1\), expected \(2, 4, 2\)"):
        learner.adapt(state, Examples(inputs=torch.zeros(2, 4, 3), targets=torch.zeros(2, 4, 1)))


def test_policies_are_left_alone() -> None:
    learner = MAML(network=NETWORK).build(Spec((3,), 2, "discrete"))
    state = learner.begin(learner.init(generator()), torch.zeros(2, 0))
    assert learner.predict(state, torch.zeros(2, 5, 3))[0].shape == (2, 5, 2)

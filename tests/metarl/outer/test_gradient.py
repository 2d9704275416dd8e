"""The meta-gradient, by hand."""

from typing import Any

import pytest
import torch
from support import synthetic

from metarl.algorithms.maml import MAML
from metarl.outer import meta_gradient
from metarl.types import Examples, Experience, Learner, Params, Spec

PARAMS = {"slope": torch.tensor([[1.0, 2.0]]), "offset": torch.tensor(3.0)}
INPUTS = torch.tensor([[[1.0, 0.0]], [[2.0, 1.0]], [[6.0, 5.0]]])  # [task, item, 2]
EXPERIENCE = Experience(
    descriptors=torch.zeros(3, 0), supports=(), query=Examples(inputs=INPUTS, targets=torch.zeros(3, 1, 1))
)


def learner() -> Learner:
    """A learner whose loss of a task is slope . input + offset."""

    def meta_loss(params: Params, experience: Experience) -> Any:
        losses = experience.query.inputs[:, 0] @ params["slope"][0] + params["offset"]  # type: ignore[union-attr]
        return losses, {"loss/step_0": losses.detach()}

    return MAML().build(Spec((2,), 1, "regression"))._replace(meta_loss=meta_loss)


@pytest.mark.parametrize("chunks", [None, 1, 2, 3])
def test_it_is_flat_and_a_mean_over_tasks(chunks: int | None) -> None:
    gradient, metrics = meta_gradient(learner(), PARAMS, EXPERIENCE, chunks)
    torch.testing.assert_close(gradient, torch.tensor([3.0, 2.0, 1.0]))
    assert set(metrics) == {"outer/loss", "loss/step_0"}
    for value in metrics.values():
        torch.testing.assert_close(value, torch.tensor(3.0 + 4.0 + 3.0))
        assert not value.requires_grad
    assert not any(value.requires_grad for value in PARAMS.values())


def test_parameters_of_no_influence_have_a_gradient_of_zero() -> None:
    gradient, _ = meta_gradient(learner(), {**PARAMS, "idle": torch.ones(2)}, EXPERIENCE)
    assert gradient.tolist() == [3.0, 2.0, 1.0, 0.0, 0.0]


@pytest.mark.usefixtures("float64")
def test_it_agrees_with_finite_differences_through_adaptation() -> None:
    learner = MAML(steps=2, step_size=0.1).build(Spec((3,), 1, "regression"))
    params = synthetic.initial(learner)
    experience = synthetic.experience(learner, params)
    gradient, _ = meta_gradient(learner, params, experience)
    name, value = list(params.items())[-1]

    def loss(shift: float) -> torch.Tensor:
        return learner.meta_loss({**params, name: value + shift}, experience)[0].mean().detach()

    slope = gradient[-value.numel() :].sum()
    torch.testing.assert_close(slope, (loss(1e-5) - loss(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("chunks", "told"), [(0, "chunks=0: give at least one"), (4, "chunks=4 is more than the 3 tasks")]
)
def test_groups_that_there_cannot_be_are_refused(chunks: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        meta_gradient(learner(), PARAMS, EXPERIENCE, chunks)

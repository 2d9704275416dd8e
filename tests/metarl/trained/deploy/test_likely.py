"""Recorded actions that cannot be the policy's own are told, before a step on them is taken for adaptation."""

import warnings

import pytest
import torch

from metarl import Rollout
from metarl.algorithms import MAML
from metarl.trained.deploy.likely import OffPolicyWarning, warn_if_unlikely
from metarl.trained.deploy.native import Native
from metarl.types import Learner, Spec

OWN = Native("box", (2,), (2,), low=(-1.0,), high=(1.0,), acted=(1,))
CHOOSING = Native("box", (2,), (2,), low=(0.0,), acted=())


def learner(kind: str, outputs: int) -> Learner:
    spec = Spec(kind=kind, input_shape=(2,), output_size=outputs, descriptor_size=1)  # type: ignore[arg-type]
    return MAML().build(spec)


def rollout(actions: torch.Tensor, mask: torch.Tensor) -> Rollout:
    time = mask.shape[2]
    seen = torch.randn(*mask.shape, 2, generator=torch.Generator().manual_seed(1))
    ended = torch.zeros(mask.shape, dtype=torch.bool)
    return Rollout(
        observations=seen,
        last_observations=seen[:, :, time - 1],
        actions=actions,
        log_probs=torch.zeros(mask.shape),
        rewards=torch.zeros(mask.shape),
        terminated=ended,
        truncated=ended,
        mask=mask,
    )


def told(made: Learner, actions: torch.Tensor, mask: torch.Tensor, own: Native) -> str:
    state = made.begin(made.init(torch.Generator().manual_seed(0)), torch.zeros(1, 1))
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        warn_if_unlikely(made, state, rollout(actions, mask), own)
    assert all(one.category is OffPolicyWarning for one in caught)
    return "".join(str(one.message) for one in caught)


@pytest.mark.parametrize("deviations", [0.0, 1.0, 2.0, 2.5, -2.5, 50.0])
@pytest.mark.parametrize("size", [1, 3])
def test_the_measure_is_the_distance_in_standard_deviations(deviations: float, size: int) -> None:
    """Actions c standard deviations away are (c^2 - 1) / 2 nats less likely than drawn ones: two at c = 2.24."""
    made, mask = learner("continuous", size), torch.ones(1, 40, 100)
    mask[0, 5:, 60:] = 0
    state = made.begin(made.init(torch.Generator().manual_seed(0)), torch.zeros(1, 1))
    with torch.no_grad():
        outputs, _ = made.predict(state, rollout(torch.zeros(1, 40, 100, size), mask).observations)
    mean, log_std = outputs.chunk(2, -1)
    actions = torch.where(mask.bool().unsqueeze(-1), mean + deviations * log_std.exp(), 1e6)  # padding is not read
    line = told(made, actions, mask, OWN)
    assert bool(line) == (abs(deviations) > 2.24)
    if line:
        normal = torch.distributions.Normal(mean, log_std.exp())
        theirs = (normal.log_prob(mean + deviations * log_std.exp()).sum(-1) * mask).sum() / mask.sum()
        assert f"log-probability is {theirs:.1f}, where" in line and "actions from -1 to 1" in line


@pytest.mark.parametrize(("chosen", "warns"), [(0, False), (1, True)])
def test_choices_that_a_sure_policy_never_makes_are_told(chosen: int, warns: bool) -> None:
    made, mask = learner("discrete", 2), torch.ones(1, 4, 10)
    sure = made._replace(predict=lambda state, inputs: (torch.tensor([4.0, -4.0]).expand(*inputs.shape[:-1], 2), state))
    assert bool(told(sure, torch.full(mask.shape, chosen), mask, CHOOSING)) == warns

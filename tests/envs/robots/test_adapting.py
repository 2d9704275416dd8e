"""Several inner steps with learned step sizes and normalised observations, on a robot."""

from dataclasses import replace

import pytest
import torch

from metarl import train
from metarl.algorithms import MAML
from metarl.algorithms.maml import STEP_SIZE
from metarl.control import Sampling
from metarl.networks import Network
from metarl.numerics import flatten
from metarl.outer import TRPO, meta_gradient
from metarl.seeding import stream
from metarl.training import Settings, gather
from metarl.types import Experience, Learner, Params, holding
from metarl_envs.robots.half_cheetah import HalfCheetah, HalfCheetahVelocity

ROBOT = HalfCheetah(action_scale=5.0, frame_skip=2)
FAMILY = HalfCheetahVelocity(robot=ROBOT, sampling=Sampling(episodes=4, horizon=12))
ALGORITHM = MAML(
    steps=2, learn_step_sizes=True, network=Network(hidden=(6,), activation="tanh"), normalise_observations=True
)


def practised(algorithm: MAML) -> tuple[Learner, Params, Experience]:
    """A learner with the statistics of one iteration, and the experience of the next."""
    learner = algorithm.build(FAMILY.spec)
    assert learner.buffers is not None
    params, held = learner.init(stream(0, "initialisation")), learner.buffers.init()
    for number in range(2):
        tasks = FAMILY.sample(3, "train", stream(number, "tasks"))
        draws = (stream(number, "draw", index) for index in range(9))
        experience, _ = gather(holding(learner, held), params, tasks, draws)
        if number == 0:
            held = learner.buffers.move(held, experience)
    return holding(learner, held), params, experience


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("step_sizes", ["parameter", "layer_step"])
def test_the_meta_gradient_of_learned_step_sizes_is_that_of_finite_differences(step_sizes: str) -> None:
    learner, params, experience = practised(replace(ALGORITHM, step_sizes=step_sizes))  # type: ignore[arg-type]
    assert len(experience.supports) == 2
    gradient, _ = meta_gradient(learner, params, experience)
    pieces = dict(zip(params, gradient.split([value.numel() for value in params.values()]), strict=True))
    generator = torch.Generator().manual_seed(1)
    for name in (f"{STEP_SIZE}hidden_0.weight", f"{STEP_SIZE}policy.log_std", "hidden_0.weight", "head.bias"):
        direction = torch.randn(params[name].shape, generator=generator)

        def loss(shift: float, name: str = name, direction: torch.Tensor = direction) -> torch.Tensor:
            return learner.meta_loss({**params, name: params[name] + shift * direction}, experience)[0].mean()

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        torch.testing.assert_close(pieces[name] @ direction.flatten(), slope, rtol=1e-4, atol=1e-8)
        assert slope.abs() > 1e-6


def test_trpo_moves_them_within_its_trust_region() -> None:
    settings = Settings(iterations=2, meta_batch_size=3, device="cpu")
    result = train(ALGORITHM, FAMILY, TRPO(max_kl=0.02), settings)
    assert {"return/step_0", "return/step_1", "return/step_2"} <= result.rows[-1].keys()
    assert all(row["outer/accepted"] == 1 and row["outer/surrogate"] > 0 for row in result.rows)
    assert all(0 < row["outer/kl"] <= 0.02 for row in result.rows)
    sizes = flatten(value for name, value in result.params.items() if name.startswith(STEP_SIZE))
    assert (sizes != 0.1).any() and (sizes - 0.1).abs().max() < 1
    assert int(result.buffers["observations.count"]) == 2 * 3 * 3 * 4 * 12

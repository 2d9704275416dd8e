"""Bernoulli bandits, as in RL^2 (https://arxiv.org/abs/1611.02779, sec. 3.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Generator, Tensor

from metarl.control import ControlTasks, Sampling
from metarl.environments.mdp import MDP, Episode, MDPEnv, MDPVectorEnv, Parameters, box
from metarl.pictures.canvas import BLACK, BLUE, GREEN, GREY, LIGHT_GREY, RED, Canvas
from metarl.seeding import uniform
from metarl.types import Spec, Split

DEFAULT_PROBABILITIES = (0.1, 0.3, 0.5, 0.7, 0.9)


def pull(probabilities: Tensor, arm: Tensor, uniform: Tensor) -> Tensor:
    """Return the reward of an arm ``[...]``: 1 if the uniform number is below the arm's probability, else 0."""
    chosen = probabilities.gather(-1, arm.unsqueeze(-1)).squeeze(-1)
    return (uniform < chosen).to(probabilities.dtype)


def optimal_returns(probabilities: Tensor, horizon: int) -> Tensor:
    """Return the expected return of always pulling the best arm, ``[task]``, given probabilities ``[task, arm]``."""
    return horizon * probabilities.amax(-1)


def uniform_returns(probabilities: Tensor, horizon: int) -> Tensor:
    """Return the expected return of pulling random arms, ``[task]``, given probabilities ``[task, arm]``."""
    return horizon * probabilities.mean(-1)


def make_env(probabilities: Sequence[float] = DEFAULT_PROBABILITIES, render_mode: str | None = None) -> MDPEnv:
    """Return a bandit with one arm per probability. The reward of a pull is 0 or 1, and the observation is always [1].

    Args:
        probabilities: ``[arm]``, the probability of a reward of 1.
        render_mode: ``"rgb_array"``, ``"human"`` or None.
    """
    return MDPEnv(bandit(len(probabilities)), {"probabilities": probabilities}, draw, render_mode)


def make_vector_env(
    num_envs: int,
    horizon: int | None = None,
    device: torch.device | str | None = None,
    probabilities: Sequence[float] = DEFAULT_PROBABILITIES,
    max_episode_steps: int | None = None,
) -> MDPVectorEnv:
    """Return lanes of bandits; ``max_episode_steps`` is Gymnasium's name for the horizon."""
    horizon = max_episode_steps if horizon is None else horizon
    return MDPVectorEnv(bandit(len(probabilities)), {"probabilities": probabilities}, num_envs, horizon, device)


def bandit(arms: int) -> MDP:
    """Return the dynamics of bandits with this many arms. Raises ValueError for fewer than two."""
    if arms < 2:
        raise ValueError(f"a bandit needs at least two arms, not {arms}")
    parameters = spaces.Dict({"probabilities": box(0, 1, (arms,))})
    return MDP(box(0, 1, (1,)), spaces.Discrete(arms), parameters, torch.zeros(()), _step, _observe, _check, noise=1)


def _step(parameters: Parameters, state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return state, pull(parameters["probabilities"], action, noise[..., 0]), torch.zeros_like(state, dtype=torch.bool)


def _observe(state: Tensor) -> Tensor:
    return torch.ones_like(state).unsqueeze(-1)


def _check(parameters: Parameters) -> None:
    for probabilities in parameters.values():
        if ((probabilities < 0) | (probabilities > 1)).any():
            raise ValueError("probabilities must be in [0, 1]")


@dataclass(frozen=True)
class Bandit:
    """Bernoulli bandits. Each arm's probability of a reward of 1 is uniform in [0, 1]; the observation is always 1.

    Task parameter and descriptor: ``probabilities`` ``[task, arm]``. By default, an adaptation uses 100 pulls, each an
    episode of its own, as in pytorch-maml-rl. A policy with memory needs one episode of 100 pulls instead.
    """

    arms: int = 5
    """Number of arms; RL^2 uses 5, 10 and 50."""
    sampling: Sampling = field(default_factory=lambda: Sampling(episodes=100, horizon=1))
    """How episodes are sampled; a draw has ``episodes`` times ``horizon`` pulls."""

    def __post_init__(self) -> None:
        bandit(self.arms)

    @property
    def spec(self) -> Spec:
        """Constant input, one output per arm; the descriptor is the arms' probabilities."""
        return Spec(input_shape=(1,), output_size=self.arms, kind="discrete", descriptor_size=self.arms)

    @property
    def parameter_space(self) -> spaces.Dict:
        """The range of the probabilities."""
        return bandit(self.arms).parameter_space

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample probabilities; the splits share one distribution. Raises ValueError for fewer than one task."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        probabilities = uniform(generator, num_tasks, self.arms)
        parameters = {"probabilities": probabilities}
        return ControlTasks(self.spec, parameters, probabilities, self.environment, self.sampling)

    def environment(self, num_envs: int, device: torch.device) -> MDPVectorEnv:
        """Return the lanes that episodes are sampled from."""
        return make_vector_env(num_envs, self.sampling.horizon, device, probabilities=[0.5] * self.arms)

    def single(self, parameters: Mapping[str, Any], render_mode: str | None = None) -> MDPEnv:
        """Return one environment of one task."""
        return make_env(**parameters, render_mode=render_mode)


TOP, BASELINE, LEFT, RIGHT = 80, 310, 40, 385
"""Heights of probability 1 and 0, and the left and right ends of the arms, in pixels."""
MOST_PULLED = 40
"""Length of an arm's bar if all pulls are of this arm, in pixels."""


def draw(episode: Episode, parameters: Parameters) -> np.ndarray[Any, Any]:
    """Return a frame ``[400, 400, 3]`` uint8: probabilities grey, mean rewards black, shares of the pulls blue.

    The best arm's number is green and starred. The arm pulled last is green if its reward was 1, else red.
    """
    canvas = Canvas(400)
    _scale(canvas)
    actions, rewards = episode.actions.long(), episode.rewards
    probabilities = parameters["probabilities"]
    width = (RIGHT - LEFT) / len(probabilities)
    for arm, probability in enumerate(probabilities.tolist()):
        paid = rewards[actions == arm]
        middle = LEFT + (arm + 0.5) * width
        last = len(actions) > 0 and int(actions[-1]) == arm
        colour = (GREEN if rewards[-1] > 0 else RED) if last else LIGHT_GREY
        _arm(canvas, middle, 0.4 * width, probability, paid, len(actions), colour)
        if width > 16:
            best = arm == int(probabilities.argmax())
            canvas.text((middle, 372), f"{arm}*" if best else f"{arm}", fill=GREEN if best else BLACK)
    pulled = f"pull {len(actions)}: arm {int(actions[-1])} paid {rewards[-1]:.0f}" if len(actions) else "before a pull"
    canvas.text((LEFT, 20), f"{pulled}; return {rewards.sum():.0f}", anchor="lm")
    canvas.text((LEFT, 44), "grey: probability; line: mean reward; blue: pulls; *: best arm", 11, GREY, "lm")
    return canvas.array()


def _scale(canvas: Canvas) -> None:
    """Draw the lines of probabilities 0, 0.5 and 1."""
    for probability in (0, 0.5, 1):
        height = BASELINE - probability * (BASELINE - TOP)
        canvas.line((LEFT, height), (RIGHT, height), LIGHT_GREY)
        canvas.text((LEFT - 6, height), f"{probability:g}", 11, GREY, "rm")


def _arm(
    canvas: Canvas,
    middle: float,
    half: float,
    probability: float,
    paid: Tensor,
    pulls: int,
    colour: tuple[int, int, int],
) -> None:
    """Draw one arm's probability, mean reward and share of the pulls."""
    height = BASELINE - TOP
    canvas.rectangle(middle - half, BASELINE - probability * height, middle + half, BASELINE, colour)
    if len(paid):
        mean = BASELINE - float(paid.mean()) * height
        canvas.line((middle - half, mean), (middle + half, mean), BLACK, width=2.5)
        share = len(paid) / pulls * MOST_PULLED
        canvas.rectangle(middle - half, BASELINE + 6, middle + half, BASELINE + 6 + share, BLUE)

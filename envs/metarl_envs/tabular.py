"""Random tabular Markov decision processes, as in RL^2 (https://arxiv.org/abs/1611.02779, sec. 3.2)."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Generator, Tensor

from metarl.control import ControlTasks, Sampling
from metarl.environments.mdp import MDP, Episode, MDPEnv, MDPVectorEnv, Parameters, box
from metarl.pictures.canvas import BLACK, GREY, LIGHT_GREY, RED, WHITE, Canvas
from metarl.seeding import normal, spawn
from metarl.types import Spec, Split


def transition(transitions: Tensor, state: Tensor, action: Tensor, uniform: Tensor) -> Tensor:
    """Return the next state ``[...]`` by inverse-transform sampling: the state in whose interval ``uniform`` lies.

    Args:
        transitions: ``[..., state, action, next state]``.
        state: ``[...]``.
        action: ``[...]``.
        uniform: ``[...]`` in [0, 1).
    """
    cumulative = _row(transitions, state, action).cumsum(-1)
    # Count the cumulative probabilities up to ``uniform``. Leave out the last one, which rounding may put below 1.
    return (cumulative[..., :-1] <= uniform.unsqueeze(-1)).sum(-1)


def reward(reward_means: Tensor, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    """Return the reward ``[...]``: the mean of the state and action, plus standard normal noise ``[...]``."""
    return _row(reward_means.unsqueeze(-1), state, action).squeeze(-1) + noise


def _row(table: Tensor, state: Tensor, action: Tensor) -> Tensor:
    """Return ``table[..., state, action, :]``."""
    # Not take_along_dim: it wraps invalid actions around, where gather raises.
    rows = table.gather(-3, state[..., None, None, None].expand(*state.shape, 1, *table.shape[-2:])).squeeze(-3)
    return rows.gather(-2, action[..., None, None].expand(*action.shape, 1, table.shape[-1])).squeeze(-2)


def optimal_returns(transitions: Tensor, reward_means: Tensor, horizon: int) -> Tensor:
    """Return the optimal expected return from state 0 in ``horizon`` steps, ``[task]``.

    Args:
        transitions: ``[task, state, action, next state]``.
        reward_means: ``[task, state, action]``.
        horizon: Steps in an episode.
    """
    return _returns(transitions, reward_means, horizon, lambda values: values.amax(-1))


def uniform_returns(transitions: Tensor, reward_means: Tensor, horizon: int) -> Tensor:
    """Return the expected return of random actions, ``[task]``; arguments as in ``optimal_returns``."""
    return _returns(transitions, reward_means, horizon, lambda values: values.mean(-1))


def _returns(transitions: Tensor, reward_means: Tensor, horizon: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """Return expected returns by backward induction; ``choose`` reduces action values to state values."""
    # Bellman's equation: V(s) = choose over a of r(s, a) + sum over n of P(n | s, a) V(n).
    values = torch.zeros_like(reward_means[..., 0])
    for _ in range(horizon):
        values = choose(reward_means + torch.einsum("...san,...n->...sa", transitions, values))
    return values[..., 0]


def sample_parameters(num_tasks: int, states: int, actions: int, generator: Generator) -> dict[str, Tensor]:
    """Sample transitions from Dirichlet(1) and reward means from Normal(1, 1); shapes as in ``TabularMDP``."""
    weights, noise = torch.empty(num_tasks, states, actions, states), torch.empty(num_tasks, states, actions)
    for task, own in enumerate(spawn(generator, num_tasks)):
        weights[task].exponential_(generator=own)
        noise[task].normal_(generator=own)
    # Exponential random numbers divided by their sum have a Dirichlet(1) distribution.
    return {"transitions": weights / weights.sum(-1, keepdim=True), "reward_means": 1 + noise}


def make_env(transitions: Any = None, reward_means: Any = None, render_mode: str | None = None) -> MDPEnv:
    """Return one random MDP, whose observation is the state, one-hot.

    Args:
        transitions: ``[state, action, next state]``; None for a task with 10 states and 5 actions, sampled with seed 0.
        reward_means: ``[state, action]``; None for those of the same task.
        render_mode: ``"rgb_array"``, ``"human"`` or None.
    """
    parameters = _parameters(transitions, reward_means)
    return MDPEnv(tabular(*parameters["transitions"].shape[:2]), parameters, draw, render_mode)


def make_vector_env(
    num_envs: int,
    horizon: int | None = None,
    device: torch.device | str | None = None,
    transitions: Any = None,
    reward_means: Any = None,
    max_episode_steps: int | None = None,
) -> MDPVectorEnv:
    """Return lanes of the same environment; ``max_episode_steps`` is Gymnasium's name for the horizon."""
    horizon = max_episode_steps if horizon is None else horizon
    parameters = _parameters(transitions, reward_means)
    return MDPVectorEnv(tabular(*parameters["transitions"].shape[:2]), parameters, num_envs, horizon, device)


def _parameters(transitions: Any, reward_means: Any) -> dict[str, Tensor]:
    sampled = sample_parameters(1, 10, 5, Generator().manual_seed(0))
    given = {"transitions": transitions, "reward_means": reward_means}
    return {name: sampled[name][0] if value is None else torch.as_tensor(value) for name, value in given.items()}


def tabular(states: int, actions: int) -> MDP:
    """Return the dynamics of MDPs of this size. Raises ValueError for fewer than two states or actions."""
    if states < 2 or actions < 2:
        raise ValueError(f"a tabular MDP needs at least two states and two actions, not {states} and {actions}")

    def observe(state: Tensor) -> Tensor:
        hot = state.unsqueeze(-1) == torch.arange(states, device=state.device)
        return hot.to(torch.get_default_dtype())

    means = box(-torch.inf, torch.inf, (states, actions))
    parameters = spaces.Dict(reward_means=means, transitions=box(0, 1, (states, actions, states)))
    start = torch.tensor(0)
    return MDP(box(0, 1, (states,)), spaces.Discrete(actions), parameters, start, _step, observe, _check, noise=2)


def _step(parameters: Parameters, state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    following = transition(parameters["transitions"], state, action, noise[..., 0])
    paid = reward(parameters["reward_means"], state, action, normal(noise[..., 1]))
    return following, paid, torch.zeros_like(state, dtype=torch.bool)


def _check(parameters: Parameters) -> None:
    if "transitions" in parameters:
        transitions = parameters["transitions"]
        if (transitions < 0).any() or ((transitions.sum(-1) - 1).abs() > 1e-4).any():
            raise ValueError("transitions are probabilities: at least 0, and summing to 1 over next states")


@dataclass(frozen=True)
class TabularMDP:
    """Random MDPs with Dirichlet(1) transitions, Normal(1, 1) reward means and Normal(mean, 1) rewards.

    Episodes start in state 0. Task parameters: ``transitions`` ``[task, state, action, next state]``, ``reward_means``
    ``[task, state, action]``. The descriptor is the whole MDP: the reward means, then the transitions, flattened.
    """

    states: int = 10
    """Number of states."""
    actions: int = 5
    """Number of actions."""
    sampling: Sampling = field(default_factory=lambda: Sampling(episodes=20, horizon=10))
    """How episodes are sampled. The horizon is part of the MDP."""

    def __post_init__(self) -> None:
        tabular(self.states, self.actions)

    @property
    def spec(self) -> Spec:
        """One-hot state as input, one output per action; the descriptor has 550 numbers at the default size."""
        numbers = self.states * self.actions * (1 + self.states)
        return Spec(input_shape=(self.states,), output_size=self.actions, kind="discrete", descriptor_size=numbers)

    @property
    def parameter_space(self) -> spaces.Dict:
        """Shapes and bounds. In addition, each row of ``transitions`` sums to 1."""
        return tabular(self.states, self.actions).parameter_space

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> ControlTasks:
        """Sample MDPs; the splits share one distribution. Raises ValueError for fewer than one task."""
        if num_tasks < 1:
            raise ValueError(f"at least one task is needed, not {num_tasks}")
        parameters = sample_parameters(num_tasks, self.states, self.actions, generator)
        descriptors = torch.cat([parameters["reward_means"].flatten(1), parameters["transitions"].flatten(1)], dim=1)
        return ControlTasks(self.spec, parameters, descriptors, self.environment, self.sampling)

    def environment(self, num_envs: int, device: torch.device) -> MDPVectorEnv:
        """Return the lanes that episodes are sampled from."""
        transitions = torch.full((self.states, self.actions, self.states), 1 / self.states)
        uniform = {"transitions": transitions, "reward_means": torch.zeros(self.states, self.actions)}
        return MDPVectorEnv(tabular(self.states, self.actions), uniform, num_envs, self.sampling.horizon, device)

    def single(self, parameters: Mapping[str, Any], render_mode: str | None = None) -> MDPEnv:
        """Return one environment of one task."""
        return make_env(**parameters, render_mode=render_mode)


CENTRE, RADIUS = (200.0, 230.0), 140.0
"""Centre and radius of the circle of states, in pixels."""


def draw(episode: Episode, parameters: Parameters) -> np.ndarray[Any, Any]:
    """Return a frame ``[400, 400, 3]`` uint8: the states on a circle and the transitions so far, the last one red."""
    canvas, states = Canvas(400), episode.states.tolist()
    places = _circle(parameters["transitions"].shape[0])
    size = min(18.0, 0.9 * RADIUS * math.pi / len(places))
    for step, (state, following) in enumerate(itertools.pairwise(states), start=2):
        age = len(states) - step
        canvas.line(places[state], places[following], RED if age == 0 else _faded(age), width=3 if age == 0 else 2)
    for state, place in enumerate(places):
        fill = RED if state == states[-1] else LIGHT_GREY if state in states else WHITE
        canvas.circle(place, size, fill, BLACK if state in states else GREY)
        if size > 8:
            canvas.text(place, str(state), int(0.9 * size))
    canvas.text((20, 20), _last_step(episode), anchor="lm")
    canvas.text((20, 44), f"return {episode.rewards.sum():.2f}", anchor="lm")
    return canvas.array()


def _circle(states: int) -> list[tuple[float, float]]:
    """Return the positions of the states: state 0 at the top, the others clockwise."""
    angles = [2 * math.pi * state / states for state in range(states)]
    return [(CENTRE[0] + RADIUS * math.sin(angle), CENTRE[1] - RADIUS * math.cos(angle)) for angle in angles]


def _faded(age: int) -> tuple[int, int, int]:
    """Return a grey that gets lighter with the age of a transition."""
    grey = min(210, 60 + 30 * age)
    return grey, grey, grey


def _last_step(episode: Episode) -> str:
    """Describe the last step."""
    if not len(episode.actions):
        return "start: state 0"
    state, following = episode.states[-2:].tolist()
    action, paid = int(episode.actions[-1]), float(episode.rewards[-1])
    return f"step {len(episode.actions)}: state {state}, action {action}, to state {following}; reward {paid:.2f}"

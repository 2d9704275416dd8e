"""What every batch of lanes keeps a book of: how long each lane has run, whether it has finished, and how.

Lanes have ``AutoresetMode.DISABLED``: one that has finished idles until it is reset. Nothing here imports torch, for
worker processes' sake, and all of it serves NumPy's arrays and torch's tensors alike.
"""

from typing import Any, NamedTuple

from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

Values = Any
"""A NumPy array or a torch tensor."""


def describe(
    env: VectorEnv[Any, Any, Any],
    observations: spaces.Space[Any],
    actions: spaces.Space[Any],
    num_envs: int,
    horizon: int | None,
) -> None:
    """Give a vector environment what Gymnasium wants to know of it, from one lane's spaces.

    Raises ValueError for no lanes, or no steps.
    """
    if num_envs < 1 or (horizon is not None and horizon < 1):
        raise ValueError(f"a batch needs at least one lane and one step, not {num_envs} and {horizon}")
    env.metadata, env.num_envs = {"autoreset_mode": AutoresetMode.DISABLED}, num_envs
    env.single_observation_space, env.single_action_space = observations, actions
    env.observation_space, env.action_space = batch_space(observations, num_envs), batch_space(actions, num_envs)


class Book(NamedTuple):
    """Where the lanes stand, ``[lane]``. Its methods change nothing in place: a step must be a pure function to be
    compiled, and what was told of an earlier one stays true."""

    elapsed: Values  # int64: steps since the lane was reset
    terminated: Values  # bool
    truncated: Values  # bool

    @property
    def running(self) -> Values:
        """Which lanes have not finished; the others idle."""
        return ~(self.terminated | self.truncated)

    def after_step(self, running: Values, ended: Values, horizon: int | None) -> "Book":
        """Return the book after a step of the lanes that were ``running``, of which some ``ended`` by themselves.

        A lane may end and be truncated, by the horizon, in one step.
        """
        elapsed = self.elapsed + running
        truncated = self.truncated if horizon is None else self.truncated | (running & (elapsed >= horizon))
        return Book(elapsed, self.terminated | (running & ended), truncated)

    def restarted(self, lanes: Values) -> "Book":
        """Return the book after the lanes of a mask were reset."""
        return Book(self.elapsed * ~lanes, self.terminated & ~lanes, self.truncated & ~lanes)


def opened(elapsed: Values) -> Book:
    """Return the book of lanes that were all just reset, from zeros: int64, ``[lane]``."""
    return Book(elapsed, elapsed != 0, elapsed != 0)

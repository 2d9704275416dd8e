"""Bookkeeping for every batch of lanes: the steps that each lane has taken, and whether and how it has finished.

Lanes have ``AutoresetMode.DISABLED``: a lane that has finished idles until it is reset. Nothing here imports torch, to
keep worker processes small. Everything works with NumPy arrays and torch tensors alike.
"""

import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

Values = Any
"""A NumPy array or a torch tensor."""
if TYPE_CHECKING:
    _Wrapper = VectorWrapper[Any, Any, Any]
else:
    _Wrapper = VectorWrapper  # in Gymnasium 1.3, it has no type arguments


def describe(
    env: VectorEnv[Any, Any, Any],
    observations: spaces.Space[Any],
    actions: spaces.Space[Any],
    num_envs: int,
    horizon: int | None,
) -> None:
    """Set the attributes that Gymnasium expects of a vector environment, from the spaces of one lane.

    Raises ValueError if there are no lanes or no steps.
    """
    if num_envs < 1 or (horizon is not None and horizon < 1):
        raise ValueError(f"a batch needs at least one lane and one step, not {num_envs} and {horizon}")
    env.metadata, env.num_envs = {"autoreset_mode": AutoresetMode.DISABLED}, num_envs
    env.single_observation_space, env.single_action_space = observations, actions
    env.observation_space, env.action_space = batch_space(observations, num_envs), batch_space(actions, num_envs)


def plain_seed(seed: Any) -> int | None:
    """Return a seed, which may be NumPy's integer, as Python's; None stays None.

    Raises ValueError for anything else than an integer of at least 0.
    """
    try:
        if seed is None or (operator.index(seed) >= 0 and not isinstance(seed, bool)):
            return None if seed is None else operator.index(seed)
    except TypeError:
        pass
    raise ValueError(f"the seed is {seed!r}: expected an integer of at least 0")


class Book(NamedTuple):
    """The status of the lanes, ``[lane]``.

    Methods change nothing in place: a step must be a pure function to be compiled, and arrays returned by earlier steps
    must keep their values.
    """

    elapsed: Values  # int64: steps since the lane was reset
    terminated: Values  # bool
    truncated: Values  # bool

    @property
    def running(self) -> Values:
        """Which lanes have not finished; the others idle."""
        return ~(self.terminated | self.truncated)

    def after_step(self, running: Values, ended: Values, horizon: int | None) -> "Book":
        """Return the book after a step of the ``running`` lanes, some of which ``ended`` by themselves.

        A lane may terminate and be truncated by the horizon in the same step.
        """
        elapsed = self.elapsed + running
        truncated = self.truncated if horizon is None else self.truncated | (running & (elapsed >= horizon))
        return Book(elapsed, self.terminated | (running & ended), truncated)

    def restarted(self, lanes: Values) -> "Book":
        """Return the book after a reset of the lanes in a mask."""
        return Book(self.elapsed * ~lanes, self.terminated & ~lanes, self.truncated & ~lanes)


def opened(elapsed: Values) -> Book:
    """Return the book of lanes that were all just reset. ``elapsed`` is zeros, int64 ``[lane]``."""
    return Book(elapsed, elapsed != 0, elapsed != 0)  # bool zeros of the same library and device


class EndsOnce(_Wrapper):
    """Lanes that report the end of an episode in one step only, and not again while they idle.

    Gymnasium's ``RecordEpisodeStatistics`` counts every reported end as an episode, so put this wrapper below it.
    ``ended`` says which lanes idle, ``[lane]``.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.ended: Values = None  # [lane] bool, of the lanes' library and device

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the lanes in the mask ``options["reset_mask"]``, by default all."""
        told = self.env.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask")
        self.ended = None if mask is None or self.ended is None else self.ended & ~_like(mask, self.ended)
        return told

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the lanes; a lane that idles reports neither termination nor truncation."""
        observations, rewards, terminations, truncations, info = self.env.step(actions)
        before = terminations & ~terminations if self.ended is None else self.ended
        self.ended = before | terminations | truncations
        return observations, rewards, terminations & ~before, truncations & ~before, info


def _like(mask: Values, flags: Values) -> Values:
    """Return a mask in the library and on the device of ``flags``."""
    return flags.new_tensor(mask) if hasattr(flags, "new_tensor") else np.asarray(mask, dtype=bool)

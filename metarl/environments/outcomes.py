"""What an environment's step may return besides its observation: a reward that is a number, and flags.

Nothing here imports torch, to keep worker processes small.
"""

import signal
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NUMBERS = (float, int, np.floating, np.integer)
COUNTED = (*NUMBERS, bool, np.bool_)
"""What counts as a number in an info."""
MOST_TOLD = 64
"""Names of numbers in infos that are counted; more are passed over."""
SUCCESS = ("success", "is_success")
"""Where environments' infos say whether an episode has succeeded; the first that is there counts."""


STEP, RESET = 1, 2
"""What a lane's environment is doing; 0: nothing."""


def is_fault(error: BaseException) -> bool:
    """Return whether an environment is to blame for what it raised, ``sys.exit`` included.

    KeyboardInterrupt is Ctrl-C's where Python's own handler raises it, and otherwise the environment's.
    """
    if isinstance(error, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    return isinstance(error, Exception | SystemExit)


def close_environment(env: Any, where: str) -> None:
    """Close an environment. A failure is a warning: what the environment was made for is done."""
    try:
        env.close()
    except BaseException as error:
        if not is_fault(error):
            raise
        warnings.warn(f"{where} could not be closed: {type(error).__name__}: {error}", stacklevel=2)


def flag(name: str, value: Any) -> bool:
    """Return a flag: True, False, 1 or 0, also as NumPy has them. Raises ValueError for anything else."""
    if value is True or value is False:
        return value
    plain = _plain(value)
    if isinstance(plain, (bool, np.bool_, *NUMBERS)) and plain in (0, 1):
        return bool(plain)
    raise ValueError(f"{name} is {value!r}: expected True or False")


def flags(name: str, values: Any) -> Any:
    """Return flags of all lanes, an array or a tensor ``[lane]``, as booleans.

    Raises ValueError unless all are True, False, 1 or 0. Names the first lane that has another one.
    """
    if values.shape[1:]:
        raise ValueError(f"{name} has shape {tuple(values.shape)}: expected one flag for each lane")
    if str(values.dtype) in ("bool", "torch.bool"):
        return values
    if str(values.dtype) == "object":
        return np.array([flag(f"{name} of lane {lane}", value) for lane, value in enumerate(values.tolist())])
    yes = values == 1
    wrong = ~(yes | (values == 0))
    if wrong.any():
        lane = wrong.tolist().index(True)
        raise ValueError(f"{name} of lane {lane} is {values[lane].tolist()!r}: expected True or False")
    return yes


def reward_of(value: Any, largest: float) -> float:
    """Return a reward as a float. Raises ValueError for anything else than one number up to the ``largest``."""
    plain: Any = value if isinstance(value, NUMBERS) else _plain(value)
    if not isinstance(plain, NUMBERS):
        kind = f"an array of shape {value.shape}" if hasattr(value, "shape") else type(value).__name__
        raise ValueError(f"the reward is {value!r}, {kind}: expected one finite number")
    number = float(plain)
    if not abs(number) <= largest:  # also where it is nan
        raise ValueError(f"the reward is {value!r}, not a finite number that the dtype of rewards holds")
    return number


def success_of(info: Mapping[str, Any]) -> bool | None:
    """Return whether an info says that the episode has succeeded; None if it does not say."""
    for name in SUCCESS:
        value = info.get(name)
        if value is not None:
            return flag(f"info[{name!r}]", value)
    return None


Told = dict[str, tuple[Any, Any]]
"""Numbers that environments told since their last reset, by name: sums and counts, arrays ``[lane]``."""


class Tally:
    """The numbers in infos, summed for each lane since its reset."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.told: Told = {}

    def add(self, lane: int, info: Mapping[str, Any]) -> None:
        """Count the numbers of a step's info; what is none, and success, which has its own score, is passed over."""
        for name, value in info.items():
            plain = value if isinstance(value, COUNTED) else _plain(value)
            if not isinstance(plain, COUNTED) or name in SUCCESS or not isinstance(name, str):
                continue
            if name not in self.told:
                if len(self.told) >= MOST_TOLD:
                    continue
                self.told[name] = np.zeros(self.num_envs), np.zeros(self.num_envs)
            sums, counts = self.told[name]
            sums[lane] += float(plain)
            counts[lane] += 1

    def restart(self, lane: int) -> None:
        """Forget what a lane has told."""
        for sums, counts in self.told.values():
            sums[lane] = counts[lane] = 0


def joined_tallies(tallies: Sequence[Told], sizes: Sequence[int]) -> Told:
    """Return what some lanes after others have told; those of a name that a part has not told count as none."""
    names = dict.fromkeys(name for told in tallies for name in told)
    nothing = [(np.zeros(size), np.zeros(size)) for size in sizes]
    joined = {}
    for name in names:
        parts = [told.get(name, none) for told, none in zip(tallies, nothing, strict=True)]
        joined[name] = np.concatenate([sums for sums, _ in parts]), np.concatenate([counts for _, counts in parts])
    return joined


def _plain(value: Any) -> Any:
    """Return the number in an array or a tensor without axes; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value

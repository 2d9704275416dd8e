"""What an environment's step may return besides its observation: a reward that is a number, and flags.

Nothing here imports torch, to keep worker processes small.
"""

import signal
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

NUMBERS = (float, int, np.floating, np.integer)
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


def _plain(value: Any) -> Any:
    """Return the number in an array or a tensor without axes; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value

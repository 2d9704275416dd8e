"""How long a search goes on: a number of trials, or a time."""

import re
from typing import NamedTuple

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Budget(NamedTuple):
    """How many trials a study has in all, or for how many seconds this process begins new ones."""

    trials: int | None
    seconds: float | None

    def share(self, trials: float, seconds: float) -> float:
        """Return how much of the budget is used, 0 to 1."""
        used = trials / self.trials if self.trials is not None else seconds / (self.seconds or 1.0)
        return min(1.0, used)


def parse_budget(text: str | int) -> Budget:
    """Read ``40``, a number of trials, or ``30s``, ``90m``, ``2h``, ``1d``. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(text).strip())
    number = float(found[1]) if found else 0.0
    if found is None or number <= 0 or (not found[2] and not number.is_integer()):
        raise ValueError(f"budget={text!r}: expected a number of trials, such as 40, or a time, such as 90m or 2h")
    return Budget(None, number * _SECONDS[found[2]]) if found[2] else Budget(int(number), None)

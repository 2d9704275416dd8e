"""When the first iterations of a run show that it will hardly learn: what was seen, and what to change."""

import math
import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

WINDOW = 20
"""Logged iterations that are judged together."""
WINDOWS = 5
"""How many times in a row that is done: then a run is no longer in its first iterations."""
MOST_CLIPPED = 0.5
"""Share of clipped actions from which on most of what a policy does has no effect."""
WIDE, GROWN = 1.05, 1.1
"""A standard deviation above this many half ranges of actions, and this many times that of the first iteration."""
NO_SIGNAL = 0.02
"""Cosine between the steps on two halves of the episodes below which they say next to nothing of the task."""
LITTLE_SIGNAL = 0.1
"""Cosine from which on they say something, however much it varies."""
WORSE = -0.1
"""Share of the variance that the baseline explains below which it does more harm than a constant would."""
PAGE = "docs/it_does_not_learn.md"

Row = Mapping[str, float]


class Regime:
    """Looks at the logged rows of a run from its first one on, and warns once if they show that it can hardly learn.

    It judges 20 logged rows at a time, five times, and then no more. A run that was resumed is judged no further.
    """

    def __init__(self, begins: bool = True) -> None:
        """Make one for a run that ``begins`` or, if not, goes on."""
        self._rows: list[Row] = []
        self._first: Row | None = None
        self._left = WINDOWS if begins else 0

    def see(self, row: Row) -> None:
        """Look at a logged row, and warn if it completes 20 that show such a regime."""
        if not self._left:
            return
        self._first = self._first or row
        self._rows.append(row)
        if len(self._rows) == WINDOW:
            told = hopeless(self._first, self._rows)
            self._rows, self._left = [], 0 if told else self._left - 1
            if told:
                warnings.warn(told, stacklevel=4)


def hopeless(first: Row, rows: Sequence[Row]) -> str | None:
    """Return a line that says why a run will hardly learn, and what to change; None if nothing shows that.

    ``first`` is the first row of the run, and ``rows`` those that are judged, one after another. It is hopeless where

    - on average, more than half of what policies do is clipped;
    - or the policies' standard deviation has grown beyond half the range of actions: clipping hides what it costs;
    - or the inner steps on two halves of the episodes have a cosine below 0.02 on average, or one that does not differ
      from 0 by two standard errors and is below 0.1, while no return rises: the mean of the later half of the rows is
      not above that of the earlier half by a standard error;
    - or the baseline predicts returns worse than a constant would, by a tenth of their variance, while no return rises.
    """
    seen = (_clipped(rows), _wide(first, rows), _without_signal(rows), _misjudged(rows))
    found = [told for told in seen if told is not None]
    if not found:
        return None
    where = f"iterations {int(rows[0]['iteration'])} to {int(rows[-1]['iteration'])}"
    return f"this run will hardly learn: in {where}, {'; '.join(found)}; see {PAGE}"


def _clipped(rows: Sequence[Row]) -> str | None:
    share = fmean(_column(rows, "signs/clipped_actions") or [0.0])
    if share <= MOST_CLIPPED:
        return None
    return (
        f"{share:.0%} of what the policies do is clipped: raise the tasks' action_scale, lower std, or choose "
        "distribution=squashed, and where observations are large, normalise_observations or output_scale=0.01"
    )


def _wide(first: Row, rows: Sequence[Row]) -> str | None:
    before, now = first.get("signs/action_std", math.nan), rows[-1].get("signs/action_std", math.nan)
    if not (now > WIDE and now > GROWN * before):  # nan is neither
        return None
    return (
        f"the policies' standard deviation has grown from {before:.2g} to {now:.2g} times half the range of actions, "
        "as clipping hides what that costs: raise the tasks' action_scale, lower std, or choose distribution=squashed"
    )


def _without_signal(rows: Sequence[Row]) -> str | None:
    signal = _column(rows, "signs/inner_signal")
    if len(signal) < 2 or _says_something(signal) or any(map(_rises, _returns(rows))):
        return None
    return (
        f"the inner steps on two halves of a task's episodes have a cosine of {fmean(signal):.3f} and no return rises: "
        "use more episodes, gae_lambda=0.95, normalise_observations, output_scale=0.01, frame_skip, or an action_scale "
        "that leaves fewer actions clipped"
    )


def _misjudged(rows: Sequence[Row]) -> str | None:
    explained = _column(rows, "signs/explained_variance")
    if len(explained) < 2 or fmean(explained) >= WORSE or any(map(_rises, _returns(rows))):
        return None
    return (
        f"the baseline predicts returns worse than a constant (explained variance {fmean(explained):.2f}) and no "
        "return rises: it has too few rows for what it reads, so use more or longer episodes, or baseline=time"
    )


def _says_something(signal: list[float]) -> bool:
    mean, error = fmean(signal), stdev(signal) / len(signal) ** 0.5
    return mean >= NO_SIGNAL and (mean >= LITTLE_SIGNAL or mean > 2 * error)


def _returns(rows: Sequence[Row]) -> list[list[float]]:
    return [_column(rows, name) for name in rows[0] if name.startswith("return/step_")]


def _rises(values: list[float]) -> bool:
    """Return whether the later half is above the earlier one, by a standard error of the difference of their means."""
    half = len(values) // 2
    if half < 2:
        return True
    early, late = values[:half], values[half:]
    error = math.sqrt(stdev(early) ** 2 / len(early) + stdev(late) ** 2 / len(late))
    return fmean(late) - fmean(early) > error


def _column(rows: Sequence[Row], name: str) -> list[float]:
    """Return the numbers of a column, without those that are missing or nan."""
    return [row[name] for row in rows if not math.isnan(row.get(name, math.nan))]

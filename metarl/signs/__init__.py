"""Signs of whether policies can learn: how they act and adapt (``measures``), and when that is hopeless (``regime``).

Start reading in ``measures``. This package knows no environment and no algorithm.
"""

from metarl.signs.measures import Ends, action_std, clipped_actions, explained_variance, inner_signal, signs
from metarl.signs.regime import Regime

__all__ = ["Ends", "Regime", "action_std", "clipped_actions", "explained_variance", "inner_signal", "signs"]

"""From rewards to advantages, and adaptation to episodes.

Rollouts come in, the same rollouts with advantages go out. This package knows no environment and no algorithm. Start
reading in ``estimates``. ``baseline`` fits the returns, ``practice`` lets a learner adapt to episodes, and
``exploration`` credits episodes before an adaptation.
"""

from metarl.advantages.estimates import Advantages
from metarl.advantages.exploration import exploration_credit
from metarl.advantages.practice import judged, learned, practised

__all__ = ["Advantages", "exploration_credit", "judged", "learned", "practised"]

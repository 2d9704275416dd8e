"""From rewards to advantages, and adaptation to episodes.

Rollouts come in, the same rollouts with advantages go out. This package knows no environment and no algorithm. Start
reading in ``estimates``. ``baseline`` fits the returns, and ``practice`` lets a learner adapt to episodes.
"""

from metarl.advantages.estimates import Advantages
from metarl.advantages.practice import judged, learned, practised

__all__ = ["Advantages", "judged", "learned", "practised"]

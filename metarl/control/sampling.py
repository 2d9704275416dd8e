"""Options for sampling the episodes of a control family."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """Options for sampling episodes."""

    episodes: int = 20
    """Episodes per task, sampled before every inner step and again for the outer update."""
    horizon: int = 200
    """Maximum number of steps of an episode."""
    discount: float = 0.99
    """Discount factor gamma. Algorithms that look beyond an episode, such as rl2, have a discount of their own, and
    refuse this one if it is set; so too with the next option."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation (GAE). With 1, the advantage is reward-to-go minus the baseline."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.horizon < 1:
            raise ValueError(f"episodes={self.episodes} and horizon={self.horizon} must be at least 1")
        if not (0 <= self.discount <= 1 and 0 <= self.gae_lambda <= 1):
            raise ValueError(f"discount and gae_lambda must be in [0, 1], not {self.discount} and {self.gae_lambda}")

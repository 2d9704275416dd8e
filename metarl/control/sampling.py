"""Options for sampling the episodes of a control family."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """Options for sampling episodes."""

    episodes: int = 20
    """Episodes per task, sampled before every inner step and again for the outer update."""
    horizon: int = 200
    """Maximum number of steps of an episode."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.horizon < 1:
            raise ValueError(f"episodes={self.episodes} and horizon={self.horizon} must be at least 1")

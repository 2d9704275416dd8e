"""How the episodes of a control family are sampled."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How a control family is sampled."""

    episodes: int = 20
    """Episodes of each task in one draw: before every inner step, and for the outer update."""
    horizon: int = 200
    """Steps after which every episode ends."""
    discount: float = 0.99
    """Weight of the next step's reward against this one's."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation; 1 is reward-to-go less the baseline."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.horizon < 1:
            raise ValueError(f"episodes={self.episodes} and horizon={self.horizon} must be at least 1")
        if not (0 <= self.discount <= 1 and 0 <= self.gae_lambda <= 1):
            raise ValueError(f"discount and gae_lambda lie in [0, 1], not {self.discount} and {self.gae_lambda}")

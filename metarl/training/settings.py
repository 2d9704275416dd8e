"""Options common to every training run."""

from dataclasses import dataclass
from typing import get_args

from metarl.spec import Spec
from metarl.speed import Device


@dataclass(frozen=True)
class Settings:
    """Options common to every training run."""

    iterations: int = 500
    """Meta-iterations: outer updates."""
    meta_batch_size: int = 40
    """Tasks sampled for each outer update."""
    seed: int = 0
    """The one seed that every stream of random numbers comes from."""
    device: Device = "auto"
    """Where networks and data live; auto is cuda where there is one."""
    compile: bool = False
    """Compile what an iteration does (torch.compile), which takes up to a minute at first: all of it with labelled
    examples, several times faster where networks are small; the steps of environments that are written in PyTorch; and
    on a GPU TRPO's update. Where that is impossible, a warning tells why and training goes on without. What a graph
    holds must not change afterwards: the options of the tasks, the algorithm and the outer update. Comparisons with
    what is not compiled find that out (iterations 1, 2, 4, 8, ... and every 200, in control every 50), not at once."""
    checkpoint_every: int = 10
    """Iterations between checkpoints; one more is written at the end."""
    log_every: int = 1
    """Iterations between rows of the logs, which tell of one iteration each; the last one is always logged. The best
    checkpoint is chosen among logged iterations."""
    validate_every: int | None = None
    """Iterations between evaluations on held-out validation tasks; the parameters that score best after the last step
    are kept: --checkpoint validated. By default there are none."""
    validation_tasks: int = 40
    """Tasks of such an evaluation."""
    validation_steps: int = 3
    """Its adaptation steps."""
    wandb: str | None = None
    """Project on Weights & Biases that the rows are sent to as well; needs pip install "metarl[wandb]"."""

    def __post_init__(self) -> None:
        if self.device not in get_args(Device):
            raise ValueError(
                f"device={self.device!r}: expected one of {', '.join(get_args(Device))}; one GPU of several is chosen "
                "by the environment variable CUDA_VISIBLE_DEVICES, which hides the others"
            )
        for name in ("iterations", "meta_batch_size", "checkpoint_every", "log_every", "validate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.validation_tasks < 1 or self.validation_steps < 0:
            raise ValueError(
                f"validation_tasks={self.validation_tasks} must be at least 1, "
                f"validation_steps={self.validation_steps} at least 0"
            )


def default_settings(spec: Spec) -> Settings:
    """Return settings fit for a family: iterations on labelled examples are many and short."""
    if spec.control:
        return Settings()
    return Settings(iterations=20_000, meta_batch_size=25, checkpoint_every=1000, log_every=100)

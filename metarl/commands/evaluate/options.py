"""The options of ``metarl evaluate``."""

import dataclasses
import os
from pathlib import Path

from tyro.conf import Positional

from metarl import runs
from metarl.files import check_place
from metarl.speed import Device
from metarl.trained import check_recording
from metarl.types import Split

EVALUATED = ("tasks", "split", "seed", "steps", "checkpoint", "schedule", "episodes", "mean")
"""Options that evaluation.json records."""
EVALUATE_HELP = """Adapt to held-out tasks, and score every adaptation step.

Options of the run's algorithm and tasks can be changed, such as --algorithm.step-size 0.05 or --tasks.shots 5."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``metarl evaluate``."""

    run: Positional[Path]
    """Run folder, group of seeds, or pretrained:NAME."""
    tasks: int = 40
    """Held-out tasks to adapt to."""
    steps: int | None = None
    """Adaptation steps. Scores are reported after 0, 1, ..., this many steps. By default 3, or as many as in training
    where those are more, or 1 for learners with memory on labelled examples."""
    split: Split = "test"
    """Split of the tasks."""
    seed: int = 0
    """Seed of the tasks and of all random numbers in adaptation."""
    checkpoint: runs.Checkpoint = "last"
    """last: the last one; best: that with the best training score (the MAML paper's protocol); validated: that with the
    best validation score; previous: the one before the last; or a kept one, such as checkpoint-100."""
    schedule: tuple[float, ...] | None = None
    """Factors of the inner step size at steps 1, 2, ...; by default the run's own."""
    episodes: int | None = None
    """Episodes before each adaptation step; by default the run's own."""
    mean: bool = False
    """Score policies without noise: they take their most likely actions, as a robot will. They adapt to episodes with
    noise, as in training."""
    on: str | None = None
    """Evaluate on another family instead: an installed name, or module:attribute, such as the same family with wider
    ranges; or NAME:PATH, an installed one with another folder or file, such as images:/data/birds. It needs the same
    observations and actions, or inputs and outputs."""
    oracle: Path | None = None
    """Evaluated run, or group of seeds, of an algorithm that observes the task parameters. With --pretrained, it gives
    the gap closed:
    (score - pretrained) / (oracle - pretrained)."""
    pretrained: Path | None = None
    """Evaluated run, or group of seeds, of a network that was trained on all tasks together. Needs --oracle."""
    references: bool = True
    """For control: also score zero actions and random actions on the same tasks, in up to five episodes of each."""
    allow_changes: bool = False
    """Evaluate with what the run's module:name is now, also if it has changed since training."""
    device: Device = "auto"
    """Device for networks and data; auto uses cuda if it is available."""
    step_timeout: float | None = 600.0
    """Seconds that one step or reset of an environment may take; None: no limit."""
    save_rollouts: str | None = None
    """Save the episodes of policies, of all tasks and steps: a file that ends in .npz, for NumPy and metarl adapt
    --data; or minari:NAME-v0, a data set of Minari (pip install 'metarl-toolkit[minari]')."""
    out: Path | None = None
    """File to write, ending in .json; pictures are written beside it, and nothing into the run folder. By default
    evaluation.json in the run folder; the previous one is kept as evaluation-1.json, evaluation-2.json, ... Of
    pretrained:NAME, scores are only printed by default. Of a group, every run is evaluated, and all joined."""
    allow_code: bool = False
    """Import code that the run names outside of installed plugins, also if you did not train it here."""

    def __post_init__(self) -> None:
        if self.out is not None:
            if self.out.suffix != ".json":
                raise ValueError(f"--out {self.out}: expected a file that ends in .json")
            if os.path.lexists(self.out):
                raise ValueError(f"--out {self.out} exists: nothing is overwritten; choose another file")
            check_place(self.out)
        if self.save_rollouts is not None:
            check_recording(self.save_rollouts)
        if (self.oracle is None) != (self.pretrained is None):
            raise ValueError("--oracle and --pretrained must be given together: the gap is measured between them")
        if self.step_timeout is not None and not self.step_timeout > 0:
            raise ValueError(f"--step-timeout {self.step_timeout}: expected more than 0 seconds, or None")
        if self.tasks < 1:
            raise ValueError(f"--tasks {self.tasks}: expected at least 1")
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"--steps {self.steps}: expected at least 0")

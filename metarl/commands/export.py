"""``metarl export RUN --to sb3 PATH``: save the meta-learnt policy as a Stable-Baselines3 model."""

import dataclasses
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from metarl import runs, sb3, training
from metarl.cli import DONE, Execute
from metarl.commands.parsing import parse, task_parameters
from metarl.files import check_place, write_bytes


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Options of ``metarl export``."""

    run: Positional[Path]
    """Run folder, or pretrained:NAME."""
    path: Positional[Path]
    """Output file, such as model.zip."""
    to: Literal["sb3"] = "sb3"
    """Format of the file: sb3, a PPO model of Stable-Baselines3."""
    checkpoint: runs.Checkpoint = "last"
    """Parameters to use: last; best, of the best training score (the MAML paper's protocol); validated, of the best
    validation; previous, of the checkpoint before the last; or one that was kept, such as checkpoint-100."""
    task: tuple[str, ...] = ()
    """Parameters of the task to adapt to: velocity=1.3, or goal=0.3,0.4."""
    steps: int = 0
    """Number of adaptation steps to that task."""
    seed: int = 0
    """Seed of adaptation and of the untrained critic."""
    overwrite: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"--steps {self.steps}: expected at least 0")
        if self.path.exists() and not self.overwrite:
            raise ValueError(f"{self.path} exists; choose another path, or replace it with --overwrite")
        check_place(self.path)


def prepare(arguments: list[str]) -> Execute:
    """``RUN --to sb3 PATH``: save the meta-learnt policy as a Stable-Baselines3 model."""
    chosen = parse(ExportOptions, arguments, "export", "Save a run's policy as a model of another library.")
    opened = training.open_run(chosen.run, chosen.checkpoint, "cpu")
    expected = "NAME=NUMBER, or NAME=NUMBER,NUMBER,..."
    task = opened.task(**task_parameters(chosen.task, expected)) if chosen.task else None
    model = sb3.to_ppo(opened, task, chosen.steps, chosen.seed)

    def execute() -> int:
        chosen.path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(chosen.path, sb3.saved(model))
        print(f"wrote {chosen.path}: stable_baselines3.PPO.load opens it; its critic is untrained")
        return DONE

    return execute

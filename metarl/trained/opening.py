"""Open a trained run: its meta-parameters, and policies adapted to tasks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metarl import control, runs
from metarl.control import ControlTasks
from metarl.evaluation import Adapted, adapt, sample_tasks
from metarl.files import expanded
from metarl.seeding import stream
from metarl.speed import Device, resolve_device, usual_modes
from metarl.training import Settings, check_data, recorded
from metarl.types import Algorithm, Family, Learner, Params, Split, Tasks


@dataclass(frozen=True)
class Trained:
    """A trained meta-learner, with its algorithm and task family."""

    algorithm: Algorithm
    family: Family
    learner: Learner
    params: Params
    """Meta-parameters, on ``device``."""
    device: torch.device
    iteration: int
    """Number of meta-iterations that the parameters were trained for."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the learner: its functions cannot be pickled, and follow from algorithm and family."""
        return {name: value for name, value in vars(self).items() if name != "learner"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build the learner anew."""
        for name, value in (state | {"learner": state["algorithm"].build(state["family"].spec)}).items():
            object.__setattr__(self, name, value)

    def tasks(self, number: int = 1, split: Split = "test", seed: int = 0) -> Tasks:
        """Sample tasks, the same as ``metarl evaluate`` with the same number, split and seed."""
        return sample_tasks(self.family, number, split, seed)

    def task(self, **parameters: Any) -> ControlTasks:
        """Return one task by its parameters, such as ``velocity=1.3``. Raises ValueError if there is no such task."""
        return control.tasks_with(self.family, {name: [value] for name, value in parameters.items()})

    def adapt(self, tasks: Tasks, steps: int = 1, seed: int = 0) -> list[Adapted]:
        """Adapt policies to tasks. Return them after 0, 1, ..., ``steps`` steps, with their episodes.

        Raises:
            ValueError: the run does not train policies, or ``steps`` is negative.
        """
        return adapt(self.learner, self.params, tasks, steps, seed, self.device)


@usual_modes()
def open_run(folder: Path | str, checkpoint: runs.Checkpoint = "last", device: Device = "auto") -> Trained:
    """Open a run folder with its last parameters, or those of the best score in training or on validation tasks.

    Raises:
        RunError: the folder holds no usable run, or no such checkpoint.
        PluginError: its algorithm or its task family is not installed.
    """
    folder = expanded(folder)
    algorithm, family, _, settings = recorded(folder, device)
    check_data(runs.read_config(folder), family, folder)
    return opened(algorithm, family, settings, runs.checkpoint(folder, checkpoint))


def opened(algorithm: Algorithm, family: Family, settings: Settings, path: Path, split: Split = "train") -> Trained:
    """Load a checkpoint of an algorithm trained on a family, for use on tasks of a split.

    Raises:
        RunError: the checkpoint cannot be read, or holds parameters of another network.
        ValueError: the algorithm does not support the family, the family's environments do not match its spec, or the
            split has too few classes.
    """
    device, learner = resolve_device(settings.device), algorithm.build(family.spec)
    control.check_tasks(family, split)
    saved = runs.load_progress(path, device)
    runs.check_architecture(learner.init(stream(settings.seed, "initialisation")), saved["params"], path)
    return Trained(algorithm, family, learner, saved["params"], device, saved["iteration"])

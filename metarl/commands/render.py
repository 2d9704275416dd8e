"""``metarl render RUN``: a film of the policy before and after each adaptation step."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction

from metarl import runs
from metarl.cli import DONE, Execute
from metarl.commands.parsing import parse, task_parameters
from metarl.control import ControlTasks
from metarl.files import check_place
from metarl.pictures import video
from metarl.speed import Device
from metarl.trained import Trained, films, open_run
from metarl.types import Split


@dataclasses.dataclass(frozen=True)
class RenderOptions:
    """Options of ``metarl render``."""

    run: Positional[Path]
    """Run folder."""
    out: Path | None = None
    """File to write, .gif or .mp4 (default: render.gif in the run folder)."""
    steps: int = 3
    """Adaptation steps: an episode is filmed after 0, 1, ..., this many."""
    tasks: int = 1
    """Held-out tasks to adapt to, a row of the film for each."""
    task: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Film this task instead: a parameter and its numbers, such as goal=0.3,-0.4; once for each parameter."""
    split: Split = "test"
    """Which tasks."""
    seed: int = 0
    """Decides the tasks, and the random numbers of adaptation and of what is filmed."""
    checkpoint: runs.Checkpoint = "last"
    """last; best, of the best training score (the MAML paper's protocol); validated, of the best validation; previous,
    the checkpoint before the last; or one that was kept: checkpoint-100."""
    mean: bool = False
    """Film the most likely action at every step, instead of actions that are sampled as in evaluation."""
    height: int = 240
    """Pixels of each picture's height."""
    fps: float | None = None
    """Frames per second (default: real time, as the environment says)."""
    device: Device = "auto"
    """Where the policy lives."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("tasks", 1), ("height", 16)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: expected at least {least}")
        if self.fps is not None and not 0 < self.fps <= 100:
            raise ValueError(f"--fps {self.fps}: expected more than 0 and at most 100")
        if self.task and self.tasks != 1:
            raise ValueError("--task gives the one task: --tasks cannot be given beside it")


RENDER_HELP = """Film a policy before and after each adaptation step, side by side, with the goal drawn in."""


def prepare(arguments: list[str]) -> Execute:
    """``RUN``: a film of the policy before and after each adaptation step."""
    chosen = parse(RenderOptions, arguments, "render", RENDER_HELP)
    out = chosen.out or chosen.run / "render.gif"
    video.check_suffix(out)
    check_place(out)
    trained = open_run(chosen.run, chosen.checkpoint, chosen.device)
    films.single_of(trained.family)
    tasks = _tasks(trained, chosen)

    def execute() -> int:
        shown, fps = films.film(trained, tasks, chosen.steps, chosen.seed, chosen.mean, chosen.height)
        rows = [(films.title(tasks, number), clips) for number, clips in enumerate(shown)]
        out.parent.mkdir(parents=True, exist_ok=True)
        print(f"wrote {video.write(rows, out, chosen.fps or fps)}")
        return DONE

    return execute


def _tasks(trained: Trained, chosen: RenderOptions) -> ControlTasks:
    if chosen.task:
        expected = "a parameter and its numbers, such as goal=0.3,-0.4"
        return trained.task(**task_parameters(chosen.task, expected))
    tasks = trained.tasks(chosen.tasks, chosen.split, chosen.seed)
    if not isinstance(tasks, ControlTasks):
        raise ValueError(f"{type(trained.family).__name__} samples no ControlTasks, which rendering needs")
    return tasks

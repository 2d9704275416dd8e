"""``metarl render RUN``: film a policy before and after each adaptation step."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction

from metarl import plugins, runs
from metarl.cli import DONE, Execute
from metarl.commands import groups
from metarl.commands.parsing import parse, task_parameters
from metarl.control import ControlTasks
from metarl.files import check_place
from metarl.pictures import video
from metarl.runs import logger
from metarl.speed import Device
from metarl.trained import Trained, films
from metarl.training import open_run
from metarl.types import Split


@dataclasses.dataclass(frozen=True)
class RenderOptions:
    """Options of ``metarl render``."""

    run: Positional[Path]
    """Run folder, group of seeds, or pretrained:NAME. Of a group, each run is filmed."""
    out: Path | None = None
    """Output file, .gif or .mp4. Default: render.gif in the run folder; NAME.gif for pretrained:NAME."""
    steps: int = 3
    """Number of adaptation steps. One episode is filmed after 0, 1, ..., this many steps."""
    tasks: int = 1
    """Number of held-out tasks. Each has its own row in the film."""
    task: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Film this task instead: a parameter and its numbers, such as goal=0.3,-0.4. Repeat for each parameter."""
    split: Split = "test"
    """Split that the tasks are sampled from."""
    seed: int = 0
    """Seed of the tasks, of adaptation, and of the filmed episodes."""
    checkpoint: runs.Checkpoint = "last"
    """Parameters to use: last; best, of the best training score (the MAML paper's protocol); validated, of the best
    validation; previous, of the checkpoint before the last; or one that was kept, such as checkpoint-100."""
    mean: bool = False
    """Film the most likely action at every step, instead of sampling actions as in evaluation."""
    height: int = 240
    """Height of each frame in pixels."""
    fps: float | None = None
    """Frames per second. Default: real time, from the environment's metadata."""
    device: Device = "auto"
    """Device of the policy."""
    allow_changes: bool = False
    """Use what the run's module:name is now, also if it has changed since training."""
    allow_code: bool = False
    """Import code that the run names outside of installed plugins, also if you did not train it here."""

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
    """``RUN``: film a policy before and after each adaptation step."""
    chosen = parse(RenderOptions, arguments, "render", RENDER_HELP)
    return groups.one_or_each(
        chosen.run, chosen.out, lambda run, out: _prepared(dataclasses.replace(chosen, run=run, out=out))
    )


def _prepared(chosen: RenderOptions) -> Execute:
    out = chosen.out or _default_out(chosen.run)
    video.check_suffix(out)
    check_place(out)
    trained = open_run(chosen.run, chosen.checkpoint, chosen.device, chosen.allow_changes, chosen.allow_code)
    films.single_of(trained.family)
    tasks = _tasks(trained, chosen)
    films.check_rendering(trained, tasks, chosen.height)

    def execute() -> int:
        shown, fps = films.film(trained, tasks, chosen.steps, chosen.seed, chosen.mean, chosen.height)
        rows = [(films.title(tasks, number), clips) for number, clips in enumerate(shown)]
        out.parent.mkdir(parents=True, exist_ok=True)
        with logger.open_bar(f"writing {out.name}") as progress:
            video.write(rows, out, chosen.fps or fps, progress)
        print(f"wrote {out}")
        return DONE

    return execute


def _default_out(run: Path) -> Path:
    folder = plugins.run_folder(run)
    return Path(f"{folder.name}.gif") if plugins.is_pretrained(run) else folder / "render.gif"


def _tasks(trained: Trained, chosen: RenderOptions) -> ControlTasks:
    if chosen.task:
        expected = "a parameter and its numbers, such as goal=0.3,-0.4"
        return trained.task(**task_parameters(chosen.task, expected))
    tasks = trained.tasks(chosen.tasks, chosen.split, chosen.seed)
    if not isinstance(tasks, ControlTasks):
        raise ValueError(f"{type(trained.family).__name__} samples no ControlTasks, which rendering needs")
    return tasks

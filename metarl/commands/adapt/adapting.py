"""``metarl adapt RUN --data ... --out FILE`` and ``metarl adapt RUN --env ... --out FILE``."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv
from tyro.conf import Positional

from metarl import plugins, runs, training
from metarl.cli import DONE, Execute
from metarl.commands.parsing import parse
from metarl.control import RolloutError
from metarl.environments import quiet_mujoco
from metarl.files import check_place
from metarl.runs import logger
from metarl.speed import Device
from metarl.trained import AdaptedPolicy, FewShotModel, Trained

ATTRIBUTE = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")
"""``module:attribute``; an id of Gymnasium, such as ``module:Name-v0``, is none."""
PROGRAMS = (".pt2", ".onnx")


@dataclasses.dataclass(frozen=True)
class AdaptOptions:
    """Options of ``metarl adapt``."""

    run: Positional[Path]
    """Run folder, or pretrained:NAME."""
    out: Path
    """Model file to write, for metarl predict and metarl.load_model. Its card is written beside it."""
    data: Path | None = None
    """Examples: a folder with a folder of images for each class, or a table (.csv) with a line of names. Its columns
    are filename and label, of images beside it; or the input numbers, then the targets or the class."""
    env: str | None = None
    """Environment to adapt to by playing: an id of Gymnasium, or module:attribute of an environment or of a function
    that makes one. Its spaces must be those of the run's."""
    episodes: int = 20
    """With --env: episodes that each step learns from."""
    after: int | None = None
    """With --env: episodes that show the return after the last step. Default: as many as --episodes; 0: none."""
    horizon: int | None = None
    """With --env: most actions in an episode. Default: that of the run's tasks."""
    steps: int | None = None
    """Number of adaptation steps. Default: 1 with --env; with --data, as many as in meta-training."""
    seed: int = 0
    """Seed of actions and of environments; with --data, of the order of the examples."""
    export: tuple[Path, ...] = ()
    """Programs to write, too, that need no metarl: files that end in .pt2 (torch.export) or .onnx."""
    checkpoint: runs.Checkpoint = "last"
    """Parameters to use: last; best, of the best training score (the MAML paper's protocol); validated, of the best
    validation; previous, of the checkpoint before the last; or one that was kept, such as checkpoint-100."""
    device: Device = "cpu"
    """Device to adapt on."""
    overwrite: bool = False
    """Replace existing files."""
    allow_changes: bool = False
    """Use what the run's module:name is now, also if it has changed since training."""
    allow_code: bool = False
    """Import code that the run names outside of installed plugins, also if you did not train it here."""

    def __post_init__(self) -> None:
        if (self.data is None) == (self.env is None):
            raise ValueError("expected either --data (a folder or a table) or --env (an environment to play in)")
        for name, least in (("episodes", 1), ("steps", 0), ("after", 0), ("horizon", 1)):
            if (given := getattr(self, name)) is not None and given < least:
                raise ValueError(f"--{name} {given}: expected at least {least}")
        for path in self.export:
            if path.suffix not in PROGRAMS:
                raise ValueError(f"--export {path}: expected a file that ends in {' or '.join(PROGRAMS)}")
        for path in (self.out, *self.export):
            if path.exists() and not self.overwrite:
                raise ValueError(f"{path} exists; choose another path, or replace it with --overwrite")
            check_place(path)


def prepare(arguments: list[str]) -> Execute:
    """``RUN --data FOLDER_OR_CSV | --env ID_OR_MODULE:ATTR --out FILE``: adapt a run, and save what comes out."""
    chosen = parse(AdaptOptions, arguments, "adapt", "Adapt a run to your own examples, or to your own environment.")
    opened = training.open_run(chosen.run, chosen.checkpoint, chosen.device, chosen.allow_changes, chosen.allow_code)
    spec = opened.learner.spec
    if chosen.data is not None and spec.control:
        raise ValueError(f"--data: {chosen.run} trains policies, for {spec.kind} actions: give an environment by --env")
    if chosen.env is not None and not spec.control:
        raise ValueError(f"--env: {chosen.run} learns from labelled examples, for {spec.kind}: give them by --data")
    if chosen.data is not None:
        return _to_data(chosen, opened)
    return _to_env(chosen, opened)


def _to_data(chosen: AdaptOptions, opened: Trained) -> Execute:
    if not chosen.data or not chosen.data.exists():
        raise ValueError(f"--data {chosen.data} does not exist: expected a folder or a table (.csv)")
    model = opened.fit(chosen.data, steps=chosen.steps, seed=chosen.seed)

    def execute() -> int:
        assert model.support is not None
        told = f"{len(model.classes)} classes: {', '.join(map(str, model.classes))}" if model.classes else "values"
        print(f"adapted to {model.support.inputs.shape[1]} examples of {told}")
        return _written(chosen, model)

    return execute


def _to_env(chosen: AdaptOptions, opened: Trained) -> Execute:
    assert chosen.env is not None
    env = _made(chosen.env)
    try:
        opened.adapt_to(env, 1, 0, 0)  # plays nothing: whether it can be adapted to
    except BaseException:
        env.close()
        raise

    def execute() -> int:
        steps = 1 if chosen.steps is None else chosen.steps
        asked = chosen.episodes, steps, chosen.after, chosen.horizon, chosen.seed
        try:
            with logger.open_bar(f"adapting to {chosen.env}") as progress:
                adapted = opened.adapt_to(env, *asked, progress)
        except RolloutError as error:
            cause = error.__cause__
            if cause is not None and getattr(cause, "is_told", False):
                cause.add_note(f"--env {chosen.env}")
                raise cause from None
            raise
        finally:
            env.close()
        print(adapted.summary())
        return _written(chosen, adapted)

    return execute


def _written(chosen: AdaptOptions, model: FewShotModel | AdaptedPolicy) -> int:
    print(f"wrote {model.save(chosen.out)}")
    for path in chosen.export:
        print(f"wrote {model.export(path)}: it needs no metarl")
    return DONE


def _made(named: str) -> Any:
    """Make the environment that a user names. Raises ValueError where that fails."""
    try:
        with quiet_mujoco():
            target: Any = plugins.import_attribute(named) if ATTRIBUTE.fullmatch(named) else None
            env = gymnasium.make(named) if target is None else target
            if not isinstance(env, gymnasium.Env | VectorEnv) and callable(env):
                env = env()
    except plugins.PluginError:
        raise
    except Exception as error:
        raise ValueError(f"--env {named} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(env, gymnasium.Env | VectorEnv):
        raise ValueError(f"--env {named} is a {type(env).__name__}: expected a gymnasium.Env, or what makes one")
    return env

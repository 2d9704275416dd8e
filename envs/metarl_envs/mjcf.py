"""Tasks of a robot of your own: an MJCF file, what it observes, what it is paid, and in what its tasks differ.

``docs/your_mjcf.md`` has worked examples. A robot that is to have several tasks, or a task for several robots, is
better two files, like those of ``metarl_envs.robots`` and ``metarl_envs.goal_velocity``.
"""

import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import mujoco
from gymnasium import spaces

from metarl_envs.mujoco import (
    ABOVE,
    Camera,
    Physics,
    Robot,
    Simulated,
    SimulatedTasks,
    Values,
    check_robot,
    model_of,
    model_path,
    namespace,
)

# Not an XML parser: MuJoCo reads files that are not well-formed, such as comments with two hyphens.
FOLDER = re.compile(r"""\b(?:mesh|texture|asset)dir\s*=\s*["']([^"']+)["']""")
FILE = re.compile(r"""\bfile\s*=\s*["']([^"']+)["']""")


@dataclass(frozen=True)
class MJCF(Simulated, SimulatedTasks):
    """Tasks of a robot of your own, which is this family itself. Extend it with a frozen dataclass.

    Give ``model_file`` and ``reward``, and what tasks differ in: ``goal_space``, a default for ``dynamics``, or both.
    Everything else has a default. All functions work on the last axes only, on NumPy's arrays and torch's tensors
    alike: then one class serves the single environment, the lanes on the CPU and those on a GPU.

    Raises ValueError for options that make no sense. The environments raise it for a file that is not there or that
    MuJoCo cannot compile, a model without actuators, an actuator without a range, and functions that return a wrong
    shape.
    """

    action_scale: float = 1.0
    """The policy's action that corresponds to one unit of the model's control. Controls are clipped to their range."""
    reset_noise: float = 0.01
    """Noise of the initial state: uniform in +- this for positions, normal with this standard deviation for
    velocities."""
    frame_skip: int = 1
    """Control steps for which each action is applied, with their rewards summed. The horizon counts actions."""

    model_file: ClassVar[str | Path]
    substeps: ClassVar[int] = 5
    contact_forces: ClassVar[bool] = False
    camera: ClassVar[Camera] = ABOVE

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse an option's default that is written without its type: dataclasses would keep the inherited one."""
        super().__init_subclass__(**options)
        untyped = vars(cls).keys() - inspect.get_annotations(cls).keys()
        for option in (each for base in cls.__bases__ if is_dataclass(base) for each in fields(base)):
            if option.name in untyped:
                written = f"{option.name}: {getattr(option.type, '__name__', option.type)} = {vars(cls)[option.name]!r}"
                raise TypeError(f"{cls.__name__}.{option.name} is an option: write it with its type, {written}")

    def __post_init__(self) -> None:
        check_robot(self)
        super().__post_init__()

    @property
    def robot(self) -> Robot:  # type: ignore[override]
        """The family itself."""
        return self

    @property
    def goal_space(self) -> Mapping[str, spaces.Box]:
        """The ranges of the task's parameters by name, in order; by default none. See ``metarl_envs.mujoco.box``."""
        return {}

    def position(self, physics: Physics) -> Values:
        """Return the position of which ``motion`` tells the velocity, ``[..., axis]``; by default the first body's.

        The default is x and y in metres. A camera without ``lookat`` follows it.
        """
        return physics.xpos[..., 1, :2]

    def observe(self, physics: Physics) -> Values:
        """Return the observations, ``[..., size]``, as a new array; by default all positions and velocities."""
        return namespace(physics.qpos).concatenate([physics.qpos, physics.qvel], axis=-1)

    def healthy(self, physics: Physics) -> Values:
        """Return which robots may go on, ``[...]``: the others' episodes end. By default all."""
        return namespace(physics.qpos).ones_like(physics.qpos[..., 0], dtype=bool)

    def body(self, name: str) -> int:
        """Return the number of a body in ``physics.xpos``. Raises ValueError for an unknown name."""
        model = model_of(self)
        number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name)
        if number < 0:
            known = ", ".join(model.body(body).name or "(no name)" for body in range(model.nbody))
            raise ValueError(f"{self.model_file} has no body {name!r}; it has {known}")
        return int(number)

    def fingerprint(self) -> str:
        """Return a digest of the MJCF file and of the files that it names: a run is not resumed with other ones."""
        told = hashlib.sha256()
        for path in _files(model_path(self)):
            told.update(hashlib.sha256(path.read_bytes()).digest())
        return told.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    """Yield an MJCF file, those that it includes, and their meshes, textures and height fields, where they exist."""
    yield path
    text = path.read_text(encoding="utf-8", errors="replace")
    folders = ["", *FOLDER.findall(text)]
    for name in FILE.findall(text):
        found = next((at for folder in folders if (at := path.parent / folder / name).is_file()), None)
        if found is not None:
            yield from _files(found) if found.suffix == ".xml" else [found]

"""Making environments, and giving them their task parameters.

Nothing here imports torch, to keep worker processes small.
"""

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from typing import Any, Literal

import gymnasium
from gymnasium import wrappers
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.wrappers import vector

Env = gymnasium.Env[Any, Any]
Maker = str | Callable[..., Env]
"""Id of a registered environment, or a function that makes one."""
Apply = Literal["keyword", "options", "attribute"] | Callable[..., object]
"""How an environment receives task parameters; see ``metarl.control.GymnasiumFamily.apply``."""
RUNNING = (wrappers.NormalizeObservation, wrappers.NormalizeReward)
"""Wrappers whose statistics run on from episode to episode."""
OVER_LANES = (vector.NormalizeObservation, vector.NormalizeReward, vector.RecordEpisodeStatistics)
"""Wrappers of lanes that count steps in which lanes idle, or keep statistics from episode to episode."""


def make_env(env: Maker, apply: Apply, values: Mapping[str, Any], **keywords: Any) -> Env:
    """Make an environment from its id or function, with ``values`` as keywords too if ``apply`` says so.

    MuJoCo's notes about deprecated models are dropped; its other warnings become Python's.

    Raises ValueError for an environment that normalises by running statistics.
    """
    given = {**values, **keywords} if apply == "keyword" else keywords
    with quiet_mujoco():
        # Gymnasium's checker checks the first step only; the lanes check every step.
        made = gymnasium.make(env, disable_env_checker=True, **given) if isinstance(env, str) else env(**given)
    try:
        _refuse_running_statistics(made)
    except ValueError:
        made.close()
        raise
    return made


def chain(env: Env) -> list[Env]:
    """Return an environment's wrappers from the outside in, and the environment itself as the last."""
    found = [env]
    while isinstance(found[-1], gymnasium.Wrapper):
        found.append(found[-1].env)
    return found


def _refuse_running_statistics(env: Env) -> None:
    for one in chain(env):
        if isinstance(one, RUNNING) and one.update_running_mean:
            name = type(one).__name__
            raise ValueError(
                f"{name} normalises by running statistics, which are no part of a run: each environment would have its "
                "own, a resumed run would lose them, and scores before and after adaptation would differ by them. Set "
                "its update_running_mean = False and give it statistics, or scale by fixed numbers in "
                f"gymnasium.wrappers.Transform{name.removeprefix('Normalize')}"
            )


def refuse_statistics(lanes: VectorEnv[Any, Any, Any]) -> None:
    """Raise ValueError for lanes with a wrapper that keeps statistics."""
    while isinstance(lanes, VectorWrapper):
        if isinstance(lanes, OVER_LANES):
            raise ValueError(
                f"the lanes have the wrapper {type(lanes).__name__}, whose statistics are no part of a run and count "
                "lanes that idle: leave it out (metarl records returns and success by itself)"
            )
        lanes = lanes.env


def apply_parameters(env: Env, apply: Apply, values: Mapping[str, Any]) -> None:
    """Set ``values`` on an environment, as attributes or by a function.

    Raises ValueError for a missing attribute, and for a function that sets an environment's attribute on its wrapper,
    where nothing reads it.
    """
    if callable(apply):
        _called(env, apply, values)
    elif apply == "attribute":
        if missing := [name for name in values if not hasattr(env.unwrapped, name)]:
            raise ValueError(f"{env.unwrapped} has no attribute {', '.join(missing)} to hold a task parameter")
        for name, value in values.items():
            setattr(env.unwrapped, name, value)


def _called(env: Env, apply: Callable[..., object], values: Mapping[str, Any]) -> None:
    around = chain(env)[:-1]
    known = [set(vars(wrapper)) for wrapper in around]
    try:
        apply(env, **values)
    except TypeError:
        _check_takes(apply, env, values)
        raise
    for wrapper, names in zip(around, known, strict=True):
        inner: Any = wrapper.env  # type: ignore[attr-defined]
        new = [name for name in vars(wrapper).keys() - names if not hasattr(type(wrapper), name)]
        if hidden := [name for name in new if _has(inner, name)]:
            name = min(hidden)
            raise ValueError(
                f"{told(apply)} sets {name} on the wrapper {type(wrapper).__name__}, where the environment does not "
                f"read it: set it on env.unwrapped, or by env.set_wrapper_attr({name!r}, ...)"
            )


def _check_takes(apply: Callable[..., object], env: Env, values: Mapping[str, Any]) -> None:
    """Raise ValueError where a function cannot be called with the environment and the parameters by their names."""
    try:
        signature = inspect.signature(apply)
    except (TypeError, ValueError):
        return  # as some built-in functions have none
    try:
        signature.bind(env, **values)
    except TypeError as error:
        call = f"apply(env, {', '.join(f'{name}=...' for name in values)})"
        raise ValueError(
            f"{told(apply)} cannot be called as {call}: {error}; its arguments must be the environment and the task's "
            "parameters, by their names"
        ) from error


def _has(env: Env, name: str) -> bool:
    return any(hasattr(one, name) for one in chain(env))


def told(function: Callable[..., object]) -> str:
    """Return a function's name and place."""
    target = inspect.unwrap(getattr(function, "func", function))
    name = getattr(target, "__qualname__", type(target).__qualname__).replace(".<locals>", "")
    code = getattr(target, "__code__", None)
    return f"the function {name}" + (f" ({code.co_filename}:{code.co_firstlineno})" if code else "")


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Drop MuJoCo's notes about deprecated models, which would go to standard error and a log file for each lane.

    Its other warnings become Python's.
    """
    after_import = _AfterImport()
    if "mujoco" in sys.modules:
        after_import.found = sys.modules["mujoco"]
        after_import.silence()
    else:
        sys.meta_path.insert(0, after_import)
    try:
        yield
    finally:
        after_import.end()


class _AfterImport(MetaPathFinder):
    """Silences MuJoCo, from the moment on at which somebody imports it."""

    def __init__(self) -> None:
        self.found: Any = None
        self._before: Any = None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "mujoco" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        loader: Any = spec and spec.loader
        if loader is not None:
            execute = loader.exec_module

            def executed(module: Any) -> None:
                execute(module)
                self.found = module
                self.silence()

            loader.exec_module = executed
        return spec

    def silence(self) -> None:
        """Take over MuJoCo's warnings."""
        self._before = getattr(self.found, "get_mju_user_warning", lambda: None)()
        self.found.set_mju_user_warning(_warned)

    def end(self) -> None:
        """Give them back."""
        if self.found is not None:
            self.found.set_mju_user_warning(self._before)
        elif self in sys.meta_path:
            sys.meta_path.remove(self)


def _warned(message: str) -> None:
    if "deprecated" not in message:
        warnings.warn(f"MuJoCo: {message}", stacklevel=2)

"""Whether task parameters take effect in an environment whose attributes are set, or to which options are passed."""

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from metarl.control.source import attributes_of
from metarl.environments import Apply, Env, apply_parameters, chain, told

STEPS = 10
"""Random steps in which what an environment reads is watched."""
ADVICE = "let apply be a function that sets what the steps read"
SPACES = ("observation_space", "action_space")


class Trace(NamedTuple):
    """The names of an environment's attributes that were read and written."""

    read: set[str]
    written: set[str]


def without_effect(env: Env, apply: Apply, values: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Return a line for each parameter that reaches nothing that the environment reads, or only a part of it.

    ``values`` and ``others`` are two tasks. The environment is used, but its errors are not raised: episodes tell them.

    Raises:
        ValueError: a function for ``apply`` does something else when it is called again with the same values.
    """
    if apply == "keyword":
        return []
    if apply == "options":
        return _ignored_options(env, values)
    if callable(apply):
        _check_function(env, apply, values, others)
        if nothing := _changes_nothing(env, apply, values, others):
            return [nothing]
    return _stale(env, apply, values)


def _ignored_options(env: Env, values: Mapping[str, Any]) -> list[str]:
    options = _Watched(values)
    try:
        env.reset(seed=0, options=options)
    except Exception:
        return []
    return [f"reset does not read the option {name}" for name in values if name not in options.read]


class _Watched(dict[str, Any]):
    """A dictionary that knows which of its keys were asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        self.read.add(key)
        return super().pop(key, *default)

    def _all(self) -> None:
        self.read |= set(dict.keys(self))

    def __iter__(self) -> Iterator[str]:
        self._all()
        return super().__iter__()

    def keys(self) -> Any:
        self._all()
        return super().keys()

    def items(self) -> Any:
        self._all()
        return super().items()

    def values(self) -> Any:
        self._all()
        return super().values()

    def copy(self) -> Any:
        self._all()
        return dict(self)


def _check_function(env: Env, apply: Callable[..., object], values: Any, others: Any) -> None:
    """Raise ValueError for a function that scales, or adds to, what it should set."""
    found: list[dict[str, Any]] = []
    if _size(values) < _size(others):  # what was scaled by 0 would show nothing any more
        values, others = others, values
    for given in (values, others, values, values):
        apply_parameters(env, apply, given)
        if given is values:
            found.append(dict(_numbers(env)))
    first = found[0]
    for name, numbers in first.items():
        changed = next((one[name] for one in found if name in one and not _equal(numbers, one[name])), None)
        if changed is not None:
            before, after = _first_difference(numbers, changed)
            error = ValueError(
                f"{told(apply)} changes {name} from {before} to {after} when it is called again for the same task "
                f"{dict(values)}: it must set values, not scale them or add to them, because the environment may hold "
                "those of another task"
            )
            error.blamed = apply  # type: ignore[attr-defined]
            raise error


def _numbers(env: Env) -> Iterator[tuple[str, Any]]:
    """Yield the numbers that an environment, its wrappers and a MuJoCo model in it hold, by name."""
    for one in chain(env):
        for name, value in vars(one).items():
            if type(value).__name__ == "MjModel":
                yield from _arrays(f"{name}.", value)
                yield from _arrays(f"{name}.opt.", value.opt)
            elif (array := _array(value)) is not None:
                yield name, array


def _arrays(prefix: str, struct: Any) -> Iterator[tuple[str, Any]]:
    for name in dir(struct):
        if not name.startswith("_") and (array := _array(getattr(struct, name, None))) is not None:
            yield prefix + name, array


def _array(value: Any) -> Any:
    """Return a copy of a value that is numbers; None for anything else."""
    if not isinstance(value, int | float | np.ndarray | np.generic | list | tuple):
        return None
    try:
        array = np.array(value)
    except ValueError:  # ragged
        return None
    return array if array.dtype.kind in "biuf" else None


def _equal(one: Any, other: Any) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-6, atol=0, equal_nan=True))


def _size(values: Mapping[str, Any]) -> float:
    return sum(float(np.abs(value).sum()) for value in values.values())


def _first_difference(one: Any, other: Any) -> tuple[Any, Any]:
    if one.shape != other.shape:
        return one.tolist(), other.tolist()
    place = np.flatnonzero(~np.isclose(one, other, rtol=1e-6, atol=0, equal_nan=True))[0]
    return one.flat[place], other.flat[place]


def _changes_nothing(env: Env, apply: Callable[..., object], values: Any, others: Any) -> str | None:
    """Return a line where a function leaves all that an environment holds as it is, whatever the task."""
    states: list[list[bytes]] = []
    for given in (values, others):
        apply_parameters(env, apply, given)
        try:
            states.append([pickle.dumps({name: value for name, value in vars(one).items() if name != "env"})
                           for one in chain(env)])  # fmt: skip
        except Exception:  # what it holds cannot be compared
            return None
    same = states[0] == states[1] and pickle.dumps(dict(values)) != pickle.dumps(dict(others))
    return f"{told(apply)} changes nothing in the environment" if same else None


def _stale(env: Env, apply: Apply, values: Mapping[str, Any]) -> list[str]:
    """Return a line for each attribute that is set and never read, or from which the constructor made others."""
    known = attributes_of(type(env.unwrapped))  # type: ignore[arg-type]  # types can be hashed
    if known is None:
        return []  # typed at a prompt, or compiled
    with _watched(env.unwrapped) as setting:
        apply_parameters(env, apply, values)
    names = sorted(setting.written) if callable(apply) else [*values]
    suspects = [name for name in names if name not in known.read or known.made_from.get(name)]
    if not suspects:
        return []
    steps, lines = _episode(env), list[str]()
    if steps is None:
        return []
    for name in suspects:
        made = known.made_from.get(name, frozenset()) - {*SPACES, *names} - steps.written
        old = sorted(made & steps.read)
        if name not in known.read and name not in steps.read and not (callable(apply) and not made):
            beside = f": the constructor made {', '.join(old)} from it" if old else ""
            lines.append(f"nothing reads {name} after it is set{beside}; {ADVICE}")
        elif old:
            lines.append(f"setting {name} leaves {', '.join(old)} as the constructor made it from {name}; {ADVICE}")
    return lines


def _episode(env: Env) -> Trace | None:
    """Watch a reset and some random steps, from episode to episode; None where they fail."""
    with _watched(env.unwrapped) as trace:
        try:
            env.reset(seed=0)
            env.action_space.seed(0)
            for _ in range(STEPS):
                _, _, terminated, truncated, _ = env.step(env.action_space.sample())
                if terminated or truncated:
                    env.reset()
        except Exception:  # its episodes will tell
            return None
    return trace


@contextmanager
def _watched(env: Any) -> Iterator[Trace]:
    """Record which attributes of an environment are read and written."""
    trace = Trace(set(), set())
    kind: Any = type(env)

    def read(self: Any, name: str) -> Any:
        trace.read.add(name)
        return kind.__getattribute__(self, name)

    def write(self: Any, name: str, value: Any) -> None:
        trace.written.add(name)
        kind.__setattr__(self, name, value)

    members = {"__getattribute__": read, "__setattr__": write, "__slots__": (), "__module__": kind.__module__}
    try:
        object.__setattr__(env, "__class__", type(kind.__name__, (kind,), members))
    except TypeError:  # its memory is laid out otherwise
        yield trace
        return
    try:
        yield trace
    finally:
        object.__setattr__(env, "__class__", kind)

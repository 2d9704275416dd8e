"""What an algorithm, a family or an outer update of a ``module:name`` is, so that another one is noticed later.

An installed name stands for a version of a package, which a run records. A ``module:name`` stands for a file that its
author goes on editing, and for an object whose options the run's configuration does not list. So a run records its
options as text, a digest of the code of the files that define it, and their git revisions.
"""

import hashlib
import inspect
import io
import json
import subprocess
import sysconfig
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from torch import Tensor

from metarl import runs

DEFINITIONS = "definitions"
"""The entry of a configuration, by algorithm, tasks and outer; runs of earlier versions have none."""
PAST = "earlier_definitions"
"""The entry with what a run was trained with before it was resumed with ``allow_changes``."""
OWN = ("metarl", "metarl_envs", "metarl_plugins")
"""Packages whose version and revision are recorded anyway."""
_STANDARD = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_INSTALLED = {"site-packages", "dist-packages"}


def defined(target: Any, reference: str, revisions: bool = True) -> dict[str, Any] | None:
    """Return what an object is, as plain data; None if ``reference`` and all in it are installed names.

    ``options`` holds its fields: numbers, texts, and ranges as text. ``code`` holds a digest of the code of each module
    that defines it: the module of the reference, that of its class, and those of the functions and environments among
    its fields. Comments do not count. ``git`` holds the revision of each module's folder, with ``+`` if the file has
    changes that are not committed; it is left out without ``revisions``.
    """
    named = _modules_in(target) if _is_installed(reference) else (reference.partition(":")[0], *_modules(target))
    files = {name: path for name in named if (path := _file(name)) is not None}
    if not files:
        return None
    found: dict[str, Any] = {"code": {name: _digest(path) for name, path in files.items()}}
    if not _is_installed(reference):  # else the configuration has all of them
        found["options"] = _told(target)
    if revisions:
        found["git"] = {name: _revision(path) for name, path in files.items()}
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _is_installed(reference: str) -> bool:
    return ":" not in reference or reference.partition(":")[0].partition(".")[0] in OWN


def check_definitions(
    config: Mapping[str, Any], targets: Mapping[str, Any], folder: Path, allow_changes: bool = False
) -> None:
    """Raise RunError where an object of a ``module:name`` is no longer what the run in a folder was trained with.

    ``targets`` are algorithm, tasks and outer update by these names. With ``allow_changes``, nothing is compared.
    """
    for name, before in config.get(DEFINITIONS, {}).items():
        reference = config[name]["reference"]
        now = defined(targets[name], reference, revisions=False)
        told = None if allow_changes or now is None else difference(before, now)
        if told is not None:
            raise runs.RunError(
                f"{folder} was trained with another {reference}: {told}; put that back, or go on with what there is "
                "now: --allow-changes, in Python allow_changes=True"
            )


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Tell the first difference of two definitions, their options first; None if they are the same."""
    options, others = (dict(_flat("", one.get("options"))) for one in (before, now))
    for name in (*options, *others):
        if options.get(name, _ABSENT) != others.get(name, _ABSENT):
            return f"{name.strip('.') or 'it'} was {options.get(name, 'absent')} and is {others.get(name, 'absent')}"
    for name, digest in before.get("code", {}).items():
        if now.get("code", {}).get(name) != digest:
            at = before.get("git", {}).get(name)
            return f"the code of {name} has changed since" + (f" (it was at git revision {at})" if at else "")
    return None


_ABSENT = object()


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(f"{prefix}.{name}", part)
    else:
        yield prefix, value


def _told(value: Any) -> Any:
    """Return a value as plain data that can be compared. Of what is none, the type or the name."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _told(getattr(value, item.name)) for item in fields(value) if item.init}
    if isinstance(value, spaces.Dict | Mapping):
        return {str(name): _told(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [_told(part) for part in value]
    if isinstance(value, bool | int | str | None):
        return value
    if isinstance(value, float | spaces.Space):
        return repr(value)
    if isinstance(value, PurePath):
        return "a path"  # data have a fingerprint, wherever they lie
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, partial):
        return [_told(value.func), _told(value.args), _told(value.keywords)]
    named = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
    return f"{named.__module__}:{named.__qualname__}"


def _modules(value: Any) -> Iterator[str]:
    """Yield the modules of the user's own that define an object, its class, and what its fields hold."""
    if isinstance(value, partial):
        value = (value.func, value.args, value.keywords)
    yield from _modules_in(value)
    if isinstance(value, str):
        value = _maker(value)
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for part in value:
            yield from _modules(part)
    elif value is not None:
        yield from _of_class(value)
        if is_dataclass(value) and not isinstance(value, type):
            yield from _modules([getattr(value, item.name) for item in fields(value)])


def _modules_in(value: Any) -> Iterator[str]:
    """Yield the modules of the texts ``module:attribute`` among an object's fields, such as those of a network."""
    if isinstance(value, str) and ":" in value:
        yield value.partition(":")[0]
    elif is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            yield from _modules_in(getattr(value, item.name))


def _maker(identifier: str) -> Any:
    """Return what makes a registered environment; None for any other text."""
    spec = gymnasium.registry.get(identifier.rpartition(":")[2])
    entry = spec and spec.entry_point
    return load_env_creator(entry) if isinstance(entry, str) else entry


def _of_class(value: Any) -> Iterator[str]:
    kinds = value.__mro__ if isinstance(value, type) else () if inspect.isroutine(value) else type(value).__mro__
    for kind in kinds or (value,):
        name = getattr(kind, "__module__", None)
        path = _file(name) if isinstance(name, str) else None
        if path is not None and not str(path).startswith(_STANDARD) and _INSTALLED.isdisjoint(path.parts):
            yield str(name)


def _file(module: str) -> Path | None:
    """Return the file of a module; None for metarl's own, and for those without one."""
    if module.partition(".")[0] in OWN:
        return None
    try:
        spec = find_spec(module)
    except (ImportError, ValueError, AttributeError):  # __main__, or a text that names no module
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None and spec.has_location else None


def _digest(path: Path) -> str:
    """Return a digest of a file; of Python's, of its code without comments and empty lines."""
    contents = path.read_bytes()
    if path.suffix == ".py":
        contents = _code(contents).encode()
    return hashlib.sha256(contents).hexdigest()


def _code(source: bytes) -> str:
    with io.TextIOWrapper(io.BytesIO(source), tokenize.detect_encoding(io.BytesIO(source).readline)[0]) as text:
        lines = text.read().split("\n")
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _revision(path: Path) -> str | None:
    """Return the commit of the repository that a file lies in; None if there is none."""
    commit = _git(path.parent, "rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+" if _git(path.parent, "status", "--porcelain", "--", path.name) else "")


def _git(folder: Path, *words: str) -> str | None:
    command: Sequence[str] = ("git", *words)
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None

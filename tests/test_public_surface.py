"""The public surface: every name that ``metarl`` and the pages of the reference offer, and how it is called.

``public_surface.txt`` is the list. ``python tests/test_public_surface.py`` writes it anew. ``docs/stability.md`` says
what a change of it means for users.
"""

import ast
import dataclasses
import enum
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import metarl

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "public_surface.txt"
COMMAND = "python tests/test_public_surface.py"
OURS = ("metarl", "metarl_envs", "metarl_plugins")


def surface() -> list[str]:
    """Return a line for each public name: its place, and its arguments if it is called."""
    lines = [line for name in metarl.__all__ for line in described(f"metarl.{name}", getattr(metarl, name))]
    first = {id(getattr(metarl, name)): f"metarl.{name}" for name in metarl.__all__}
    for place, target in documented():
        known = first.setdefault(id(target), place)
        lines += described(place, target) if known == place or not callable(target) else [f"{place} = {known}"]
    return sorted(set(lines))


def documented() -> Iterator[tuple[str, Any]]:
    """Yield the objects that pages of the reference show, with their places."""
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        blocks = re.findall(r"^::: (\S+)(?:\n    options:\n      members: \[(.*?)\])?", page.read_text(), re.MULTILINE)
        for place, members in blocks:
            target = found(place)
            if isinstance(target, ModuleType):
                for name in members.replace(",", " ").split() or offered(target):
                    yield f"{place}.{name}", getattr(target, name)
            else:
                yield place, target


def found(place: str) -> Any:
    """Return a module, or an attribute of one."""
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError:
        module, _, name = place.rpartition(".")
        return getattr(importlib.import_module(module), name)


def offered(module: ModuleType) -> list[str]:
    """Return the public names of a module: those of ``__all__``, or those that its source defines."""
    if hasattr(module, "__all__"):
        return [
            name for name in module.__all__ if not isinstance(getattr(module, name, module), ModuleType)
        ]  # submodules may not be imported yet
    return [name for name in defined(module) if not name.startswith("_")]


def defined(module: ModuleType) -> Iterator[str]:
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.asname == alias.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def described(place: str, target: Any) -> Iterator[str]:
    """Yield what is promised of an object; of a class also its members."""
    yield place + called(target)
    if not inspect.isclass(target):
        return
    for kind in target.__mro__:
        if is_ours(kind):
            for name in vars(kind):
                if not name.startswith("_") and not is_field(target, name):
                    yield f"{place}.{name}{called(inspect.getattr_static(target, name))}"


def is_ours(target: Any) -> bool:
    return target.__module__.partition(".")[0] in OURS


def is_field(kind: type, name: str) -> bool:
    """Whether a name is an argument of its class, so that it is told of already."""
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    return name in fields or name in getattr(kind, "_fields", ())


def called(target: Any) -> str:
    """Return the names of arguments and their defaults; nothing for what is not called."""
    target = getattr(target, "__func__", target)  # of class methods and static ones
    if not (inspect.isclass(target) or inspect.isfunction(target)) or not is_ours(target):
        return ""
    if inspect.isclass(target) and issubclass(target, BaseException | enum.Enum):
        return ""
    if getattr(target, "_is_protocol", False):
        return ""
    return "(" + ", ".join(arguments(inspect.signature(target))) + ")"


def arguments(signature: inspect.Signature) -> Iterator[str]:
    parameters = [parameter for name, parameter in signature.parameters.items() if name != "self"]
    kinds = [parameter.kind for parameter in parameters]
    for place, parameter in enumerate(parameters):
        first = kinds.index(parameter.kind) == place
        if parameter.kind is parameter.KEYWORD_ONLY and first and parameter.VAR_POSITIONAL not in kinds:
            yield "*"
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        yield star + parameter.name + default(parameter)
        if parameter.kind is parameter.POSITIONAL_ONLY and kinds[place + 1 : place + 2] != [parameter.kind]:
            yield "/"


def default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return ""
    values = parameter.default if isinstance(parameter.default, tuple) else (parameter.default,)
    plain = all(isinstance(value, int | float | str | None) for value in values)
    return f"={parameter.default!r}" if plain else "=..."


def test_the_public_surface_is_the_list() -> None:
    listed, here = LIST.read_text(encoding="utf-8").splitlines(), surface()
    gone, new = [line for line in listed if line not in here], [line for line in here if line not in listed]
    told = "\n".join([*(f"- {line}" for line in gone), *(f"+ {line}" for line in new)])
    advice = f"docs/stability.md says what may change. If this is meant, write the list anew: {COMMAND}"
    assert not told, f"names or arguments differ from {LIST.name}:\n{told}\n{advice}"
    assert listed == here, f"the order of {LIST.name} differs: {COMMAND}"


def test_whatever_metarl_offers_is_in_the_list_with_its_arguments() -> None:
    lines = surface()
    for name in metarl.__all__:
        assert any(re.match(rf"metarl\.{name}(\(|$)", line) for line in lines)
    (train,) = [line for line in lines if line.startswith("metarl.train(")]
    assert train.startswith("metarl.train(algorithm, family, outer=None, settings=None, out=None, overwrite=False")
    assert "metarl.training.train = metarl.train" in lines
    assert "metarl.Evaluation" not in "".join(lines), "which is offered by metarl.evaluation only"
    assert "metarl.evaluation.Evaluation.metrics" in lines
    assert "metarl.seeding.uniform(generator, tasks, *shape, dtype=None)" in lines
    assert not any("._" in line.partition("(")[0].replace("__version__", "") for line in lines)


def test_changes_of_every_kind_would_show() -> None:
    def one(first, /, second, *, third=3): ...
    def other(self, *many, third=(1, "a"), fourth=ROOT, **more): ...

    one.__module__ = other.__module__ = "metarl"
    assert called(one) == "(first, /, second, *, third=3)"
    assert called(other) == "(*many, third=(1, 'a'), fourth=..., **more)"
    assert called(ValueError) == called(3) == ""


if __name__ == "__main__":
    LIST.write_text("\n".join(surface()) + "\n", encoding="utf-8")
    print(f"wrote {LIST}", file=sys.stderr)

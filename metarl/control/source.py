"""What an environment's source says of its attributes: which are read, and which its constructor makes from others."""

import ast
import inspect
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import gymnasium

SHOWING = ("render", "close", "__repr__", "__str__")
"""Methods whose reading changes no step."""


class Attributes(NamedTuple):
    """The attributes of a class, by its source."""

    read: frozenset[str]
    """Those that methods other than the constructor and those that show read, of whatever object."""
    made_from: dict[str, frozenset[str]]
    """What the constructor makes from each name, one of its arguments or an attribute, directly or by others."""


@lru_cache
def attributes_of(kind: type) -> Attributes | None:
    """Return what the source of a class and of its bases says; None where there is no source."""
    read: set[str] = set()
    made_from: dict[str, set[str]] = {}
    try:
        for one in kind.__mro__:
            if one in (gymnasium.Env, object) or one.__module__ in ("typing", "abc"):
                continue
            for function in _functions(one):
                if function.name == "__init__":
                    _follow(function, made_from)
                elif function.name not in SHOWING:
                    read |= {name for node in ast.walk(function) if (name := _loaded(node))}
    except (OSError, TypeError, SyntaxError, KeyError):
        return None
    return Attributes(frozenset(read), {name: frozenset(_closure(name, made_from)) for name in made_from})


def _functions(kind: type) -> Iterator[ast.FunctionDef]:
    # Not inspect.getsource(kind), which takes several times as long.
    module = inspect.getmodule(kind)
    if module is None:
        raise OSError
    tree = dict(_classes(ast.parse(inspect.getsource(module)), ""))[kind.__qualname__]
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _classes(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield the classes of a module by their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield prefix + node.name, node
            yield from _classes(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _classes(node, f"{prefix}{node.name}.<locals>.")
        elif isinstance(node, ast.stmt):
            yield from _classes(node, prefix)


def _loaded(node: ast.AST) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) else None


def _follow(constructor: ast.FunctionDef, made_from: dict[str, set[str]]) -> None:
    """Add what each assignment makes from which names; an attribute and a variable of one name count as one."""
    for node in ast.walk(constructor):
        for target, value in _assigned(node):
            made = {name for one in ast.walk(target) if (name := _name(one))}
            for source in {name for one in ast.walk(value) if (name := _name(one))}:
                made_from.setdefault(source, set()).update(made - {source})


def _assigned(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield targets and values of an assignment, one by one where it assigns several at once."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                yield from zip(target.elts, node.value.elts, strict=False)
            else:
                yield target, node.value
    elif isinstance(node, ast.AnnAssign | ast.AugAssign) and node.value is not None:
        yield node.target, node.value


def _name(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return node.id if isinstance(node, ast.Name) and node.id != "self" else None


def _closure(name: str, made_from: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left = [name]
    while left:
        new = made_from.get(left.pop(), set()) - found - {name}
        found |= new
        left += new
    return found

"""Reading modules without importing them: what a plugin says of itself, and what would stop its import.

Modules are located and parsed; none is executed. Standard library only, so that ``metarl list`` is quick.
"""

import ast
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

# Names whose presence means that a module may define more than its statements show.
_DYNAMIC = {"*", "__getattr__", "exec", "globals"}


def summary(module: str, attribute: str) -> str:
    """Return the first docstring line of an attribute; empty where only importing the module would tell.

    Raises ImportError, with the cause, for what can be seen to fail: a module that is not there or cannot be parsed,
    an import of something not installed, an attribute that is not defined.
    """
    parts = module.split(".")
    trees = [_parsed(".".join(parts[: end + 1])) for end in range(len(parts))]
    for tree in trees:
        _require_imports(tree)
    name, *inner = attribute.split(".")
    found = _binding(trees[-1], name)
    if found is None:
        raise ImportError(f"the module {module!r} does not define {name!r}")
    if isinstance(found, ast.ImportFrom):
        found = _followed(found, module, name)
    if inner or not isinstance(found, _Definition):
        return ""
    return (ast.get_docstring(found) or "").partition("\n")[0]


def _located(module: str) -> ModuleSpec:
    """Return where a module would be imported from. Raises ImportError where there is none."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:
        spec = None  # an empty name, or a module such as __main__ that says nothing of its origin
    for part in rest:
        # The bare name: for a dotted one, namespace packages would look for their parent in sys.modules.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations or ())) if spec else None
    if spec is None:
        raise ImportError(f"there is no module {module!r}")
    return spec


def _parsed(module: str) -> ast.Module:
    """Return a module's syntax tree; where there is no source, that of a module that might define anything."""
    spec = _located(module)
    get_source = getattr(spec.loader, "get_source", lambda name: None)
    try:
        text = get_source(spec.name)
        with warnings.catch_warnings(action="ignore"):  # the parser's warnings are for those who import the module
            return ast.parse("__getattr__ = None" if text is None else text)
    except (SyntaxError, ValueError) as error:
        raise ImportError(f"the module {module!r} cannot be parsed: {type(error).__name__}: {error}") from error


def _require_imports(tree: ast.Module) -> None:
    """Raise ImportError for an import that always runs and whose top-level package is not installed."""
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for package in (name.partition(".")[0] for name in names):
            try:
                _located(package)
            except ImportError as error:
                raise ImportError(f"needs {package!r}, which is not installed") from error


def _binding(tree: ast.Module, name: str) -> ast.AST | None:
    """Return the last node that binds a name in a module, the tree itself where that cannot be told, else None."""
    found: ast.AST | None = None
    for node in _executed(tree):
        names = set(_bound(node))
        if name in names:
            found = node
        elif found is None and names & _DYNAMIC:
            found = tree
    return found


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what may run when a module is imported: everything but the bodies of functions and classes."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, _Definition):
            yield from _executed(child)


def _bound(node: ast.AST) -> Iterator[str]:
    if isinstance(node, _Definition):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.Name) and (isinstance(node.ctx, ast.Store) or node.id in _DYNAMIC):
        yield node.id


def _followed(node: ast.ImportFrom, module: str, name: str) -> ast.AST | None:
    """Return the definition that an import statement brings in, one level deep; None where it is not found there."""
    is_package = _located(module).submodule_search_locations is not None
    parts = module.split(".")
    origin = parts[: len(parts) - node.level + is_package] if node.level else []
    original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
    try:
        return _binding(_parsed(".".join([*origin, *filter(None, [node.module])])), original)
    except ImportError:
        return None

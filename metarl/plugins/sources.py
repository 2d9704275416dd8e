"""Read modules without importing them: a plugin's docstring, and problems that its import would have.

Modules are located and parsed, never executed. Standard library only, so that ``metarl list`` is fast.
"""

import ast
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

# A module that uses one of these names may define more names than its statements show.
_DYNAMIC = {"*", "__getattr__", "exec", "globals"}


Trees = dict[str, ast.Module]
"""Syntax trees by module, of modules whose imports can be found."""


def summary(module: str, attribute: str, trees: Trees) -> str:
    """Return the first docstring line of an attribute; empty if it cannot be found without importing the module.

    The modules that it reads are added to ``trees``, and modules in ``trees`` are not read again.

    Raises ImportError, with the cause, if the import would surely fail: a module does not exist or cannot be parsed,
    it imports something that is not installed, or the attribute is not defined.
    """
    parts = module.split(".")
    for package in (".".join(parts[: end + 1]) for end in range(len(parts))):
        if package not in trees:
            tree = _parsed(package)
            _require_imports(tree)
            trees[package] = tree
    name, *inner = attribute.split(".")
    node = _binding(trees[module], name)
    if node is None:
        raise ImportError(f"the module {module!r} does not define {name!r}")
    if isinstance(node, ast.ImportFrom):
        node = _followed(node, module, name)
    if inner or not isinstance(node, _Definition):
        return ""
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _located(module: str) -> ModuleSpec:
    """Return the spec that a module would be imported from. Raises ImportError if there is no such module."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:
        spec = None  # an empty name, or a module such as __main__ without a spec
    for part in rest:
        # The last part of the name only: for a dotted one, namespace packages look up their parent in sys.modules.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations or ())) if spec else None
    if spec is None:
        raise ImportError(f"there is no module {module!r}")
    return spec


def _parsed(module: str) -> ast.Module:
    """Return a module's syntax tree; without source, a tree that might define anything (``__getattr__``)."""
    spec = _located(module)
    get_source = getattr(spec.loader, "get_source", lambda name: None)
    try:
        text = get_source(spec.name)
        with warnings.catch_warnings(action="ignore"):  # the parser warns again when the module is imported
            return ast.parse("__getattr__ = None" if text is None else text)
    except (SyntaxError, ValueError) as error:
        raise ImportError(f"the module {module!r} cannot be parsed: {type(error).__name__}: {error}") from error


def _require_imports(tree: ast.Module) -> None:
    """Raise ImportError if an unconditional import needs a top-level package that is not installed."""
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
    """Return the last node that binds a name in a module; the tree itself if this is unknown; None if there is none."""
    binding: ast.AST | None = None
    for node in _executed(tree):
        names = set(_bound(node))
        if name in names:
            binding = node
        elif binding is None and names & _DYNAMIC:
            binding = tree
    return binding


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that may run when a module is imported: all but the bodies of functions and classes."""
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
    """Return the definition that an import statement refers to, one level deep; None if it is not found there."""
    is_package = _located(module).submodule_search_locations is not None
    parts = module.split(".")
    origin = parts[: len(parts) - node.level + is_package] if node.level else []
    original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
    try:
        return _binding(_parsed(".".join([*origin, *filter(None, [node.module])])), original)
    except ImportError:
        return None

"""Who may import whom, read from the source of every module."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLKIT = ("metarl", "metarl_envs", "metarl_plugins")
FOLDERS = (ROOT, ROOT / "envs", ROOT / "plugins")
FILES = {
    ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): path
    for folder, package in zip(FOLDERS, TOOLKIT, strict=True)
    for path in sorted((folder / package).rglob("*.py"))
}


def imports(source: str, module: str = "", is_package: bool = False, top_level: bool = False) -> set[str]:
    """Return the full names that a module imports; ``from a import b`` counts as ``a.b``."""
    tree = ast.parse(source)
    found = set()
    for node in _executed(tree) if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            found |= {".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names}
    return found


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when a module is imported: not what is for type checkers only, nor the inside of functions."""
    yield node
    for child in ast.iter_child_nodes(node):
        for_checkers = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        if not for_checkers and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _executed(child)


def read(module: str, top_level: bool = False) -> set[str]:
    path = FILES[module]
    return imports(path.read_text(), module, path.name == "__init__.py", top_level)


def within(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def offences(module: str, *forbidden: str) -> list[str]:
    return sorted(name for name in read(module) if any(within(name, package) for package in forbidden))


def modules(package: str) -> list[str]:
    return [module for module in FILES if within(module, package)]


def test_imports_are_read_in_all_their_forms() -> None:
    source = "import a.b as c\nfrom d import e, f\nfrom . import g\nfrom ..h import i\ndef late():\n    import j"
    assert imports(source, "x.y.z") == {"a.b", "d.e", "d.f", "x.y.g", "x.h.i", "j"}
    assert imports("from .a import b", "x", is_package=True) == {"x.a.b"}
    source = "if True:\n    import a\nif TYPE_CHECKING:\n    import b\ndef late():\n    import c"
    assert imports(source, top_level=True) == {"a"}


def test_every_package_is_read() -> None:
    assert {module.partition(".")[0] for module in FILES} == set(TOOLKIT)


@pytest.mark.parametrize("module", modules("metarl"))
def test_the_toolkit_imports_no_plugin(module: str) -> None:
    assert offences(module, "metarl_envs", "metarl_plugins") == []


@pytest.mark.parametrize("module", modules("metarl_envs"))
def test_environments_do_not_import_plugins(module: str) -> None:
    assert offences(module, "metarl_plugins") == []


@pytest.mark.parametrize("module", modules("metarl_plugins"))
def test_plugins_do_not_import_environments(module: str) -> None:
    assert offences(module, "metarl_envs") == []


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("metarl.spec", ()),
        ("metarl.types", ("metarl.spec",)),
        ("metarl.objectives", ("metarl.types",)),
        (
            "metarl.networks.models",
            ("metarl.networks.derivatives.perceptron", "metarl.networks.layers", "metarl.types"),
        ),
    ],
)
def test_the_lower_layers_import_only_what_lies_below(module: str, allowed: tuple[str, ...]) -> None:
    assert [name for name in offences(module, *TOOLKIT) if not any(within(name, other) for other in allowed)] == []


@pytest.mark.parametrize("module", modules("metarl.algorithms"))
def test_algorithms_know_no_environment(module: str) -> None:
    assert offences(module, "gymnasium", "stable_baselines3", "metarl.control") == []


@pytest.mark.parametrize("module", sorted(set(FILES) - set(modules("metarl.sb3")) - {"metarl.runs.logger"}))
def test_stable_baselines_is_imported_at_the_edge_only(module: str) -> None:
    assert offences(module, "stable_baselines3") == []


@pytest.mark.parametrize("module", FILES)
def test_nobody_imports_pyplot(module: str) -> None:
    """Its figures and settings are global: they would leak into the user's own pictures."""
    assert offences(module, "matplotlib.pyplot", "pylab") == []


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("metarl", ()),
        ("metarl.plugins.sources", ()),
        ("metarl.plugins", ("metarl.plugins.sources",)),
        ("metarl.cli", ("metarl.plugins", "metarl.__version__")),
    ],
)
def test_what_listing_needs_is_standard_library_only(module: str, allowed: tuple[str, ...]) -> None:
    """Else `metarl list` would wait for torch."""
    found = read(module, top_level=True)
    foreign = [name for name in found if name.partition(".")[0] not in sys.stdlib_module_names]
    assert [name for name in foreign if not any(within(name, other) for other in allowed)] == []

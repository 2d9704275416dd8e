"""Who may import whom, read from the source of every module: the law of the house.

``ORDER`` lists the packages of ``metarl`` from the ground up: each may import those before it, by the names that their
facades (``__init__.py``) offer. Imports inside functions count too.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLKIT = ("metarl", "metarl_envs", "metarl_plugins")
FOLDERS = (ROOT, ROOT / "envs", ROOT / "plugins")
ORDER = (
    ("distributions",),
    ("spec", "files"),
    ("types",),
    ("objectives", "seeding", "numerics"),
    ("selection",),
    ("advantages",),
    ("plugins",),
    ("safety",),
    ("speed",),
    ("pictures",),
    ("networks",),
    ("environments",),
    ("fewshot",),
    ("control",),
    ("outer",),
    ("algorithms",),
    ("runs",),
    ("origins",),
    ("evaluation",),
    ("signs",),
    ("trained",),
    ("training",),
    ("tuning",),
    ("testing",),
    ("sb3",),
    ("cli", "__init__"),
    ("commands", "__main__"),
)
"""Packages and modules of ``metarl``, from the ground up; what stands in one row does not know of each other."""
RANKS = {name: rank for rank, names in enumerate(ORDER) for name in names}
MOST_MODULES, MOST_AT_THE_ROOT = 12, 10

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


def home(name: str) -> str:
    """Return the package or root module of ``metarl`` that a full name belongs to: 'outer' for metarl.outer.trpo."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in RANKS else "__init__"


def offered(package: str) -> set[str]:
    """Return the names that a package's facade offers, read from its ``__all__``."""
    tree = ast.parse(FILES[f"metarl.{package}"].read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def is_package(name: str) -> bool:
    return FILES.get(f"metarl.{name}", Path()).name == "__init__.py"


def closed(name: str) -> bool:
    """Whether a full name of another package is none that its facade offers, as a name or as a module."""
    package, *rest = name.split(".")[1:]
    return is_package(package) and bool(rest) and rest[0] not in offered(package)


def sources(module: str) -> set[str]:
    """Return the modules of the toolkit that a module imports from."""
    found = set()
    for name in read(module):
        while name and name not in FILES:
            name = name.rpartition(".")[0]
        found |= {name} - {"", module}
    return found


def test_imports_are_read_in_all_their_forms() -> None:
    source = "import a.b as c\nfrom d import e, f\nfrom . import g\nfrom ..h import i\ndef late():\n    import j"
    assert imports(source, "x.y.z") == {"a.b", "d.e", "d.f", "x.y.g", "x.h.i", "j"}
    assert imports("from .a import b", "x", is_package=True) == {"x.a.b"}
    source = "if True:\n    import a\nif TYPE_CHECKING:\n    import b\ndef late():\n    import c"
    assert imports(source, top_level=True) == {"a"}


def test_every_package_is_read_and_has_its_place() -> None:
    assert {module.partition(".")[0] for module in FILES} == set(TOOLKIT)
    assert {module.split(".")[1] for module in modules("metarl") if "." in module} <= set(RANKS)


@pytest.mark.parametrize("module", modules("metarl"))
def test_packages_import_only_what_lies_below(module: str) -> None:
    own = home(module)
    above = [name for name in read(module) if within(name, "metarl") and home(name) != own]
    assert [name for name in above if RANKS[home(name)] >= RANKS[own] and name != "metarl.__version__"] == []


@pytest.mark.parametrize("module", list(FILES))
def test_other_packages_are_used_by_what_their_facades_offer(module: str) -> None:
    """The names in ``__all__``: no private name, and nothing from the inside of a package."""
    others = [name for name in read(module) if within(name, "metarl")]
    if within(module, "metarl"):
        others = [name for name in others if home(name) != home(module)]
    assert [name for name in others if closed(name) or name.rpartition(".")[2].startswith("_")] in (
        [],
        ["metarl.__version__"],
    )


@pytest.mark.parametrize("package", TOOLKIT)
def test_no_module_imports_itself_through_others(package: str) -> None:
    """Not inside functions either. A package's own facade is imported by nobody within it."""
    arrows = {module: sources(module) for module in modules(package)}
    finished: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in finished:
            for other in sorted(arrows.get(module, ())):
                visit(other, (*way, module))
            finished.add(module)

    for module in arrows:
        visit(module, ())


def test_rooms_are_small() -> None:
    sizes: dict[str, int] = {}
    for module, path in FILES.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        sizes[package] = sizes.get(package, 0) + 1
    assert sizes.pop("metarl") <= MOST_AT_THE_ROOT
    assert {package: size for package, size in sizes.items() if size > MOST_MODULES} == {}


@pytest.mark.parametrize("module", [name for name, path in FILES.items() if path.name == "__init__.py"])
def test_every_facade_says_what_its_room_is_for(module: str) -> None:
    assert ast.get_docstring(ast.parse(FILES[module].read_text()))


@pytest.mark.parametrize("module", modules("metarl"))
def test_the_toolkit_imports_no_plugin(module: str) -> None:
    assert offences(module, "metarl_envs", "metarl_plugins") == []


@pytest.mark.parametrize("module", modules("metarl_envs"))
def test_environments_do_not_import_plugins(module: str) -> None:
    assert offences(module, "metarl_plugins") == []


@pytest.mark.parametrize("module", modules("metarl_plugins"))
def test_plugins_do_not_import_environments(module: str) -> None:
    assert offences(module, "metarl_envs") == []


@pytest.mark.parametrize("module", [*modules("metarl.algorithms"), *modules("metarl.outer")])
def test_algorithms_know_no_environment(module: str) -> None:
    assert offences(module, "gymnasium", "stable_baselines3", "metarl.control", "metarl.environments") == []


@pytest.mark.parametrize("module", modules("metarl.training"))
def test_training_knows_no_picture(module: str) -> None:
    assert offences(module, "stable_baselines3", "metarl.sb3", "metarl.pictures", "matplotlib", "warp") == []


@pytest.mark.parametrize("module", sorted(set(FILES) - set(modules("metarl.sb3")) - {"metarl.runs.writers"}))
def test_stable_baselines_is_imported_at_the_edge_only(module: str) -> None:
    assert offences(module, "stable_baselines3") == []


@pytest.mark.parametrize("module", FILES)
def test_nobody_imports_pyplot(module: str) -> None:
    """Its figures and settings are global: they would leak into the user's own pictures."""
    assert offences(module, "matplotlib.pyplot", "pylab") == []


@pytest.mark.parametrize("module", ["metarl", "metarl.cli", *modules("metarl.plugins"), *modules("metarl.safety")])
def test_what_listing_needs_is_standard_library_only(module: str) -> None:
    """Else `metarl list` would wait for torch."""
    found = read(module, top_level=True)
    foreign = [name for name in found if name.partition(".")[0] not in sys.stdlib_module_names]
    allowed = ("metarl.plugins", "metarl.safety", "metarl.__version__")
    assert [name for name in foreign if not any(within(name, other) for other in allowed)] == []

"""The registry, on fake distributions: metadata and a module in a folder on sys.path, as pip would leave them."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metarl import plugins
from metarl.plugins.registry import PluginError, available, load

Install = Callable[..., Path]

FAMILY = '''
class Maze:
    """Find the way out.

    More words.
    """

    spec = None

    def sample(self, num_tasks, split, generator): ...
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a distribution into a folder of its own, at the front of sys.path."""

    def install(package: str, entries: dict[str, str], files: dict[str, str], version: str = "1.0") -> Path:
        folder = tmp_path / f"site{len(list(tmp_path.iterdir()))}"
        info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(["[metarl.tasks]", *lines]) + "\n")
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        monkeypatch.syspath_prepend(folder)
        return folder

    yield install
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("contents", [None, b"", b"\xff\xfe\x00"])
def test_a_damaged_installation_is_named_and_others_are_listed(install: Install, contents: bytes | None) -> None:
    install("sound", {"same": "damaged_family:Maze"}, {"damaged_family.py": FAMILY})
    info = install("broken", {"same": "damaged_family:Maze"}, {}) / "broken-1.0.dist-info"
    (info / "METADATA").unlink()
    if contents is not None:
        (info / "METADATA").write_bytes(contents)
    problems = {plugin.problem for plugin in available("tasks") if plugin.name == "same"}
    assert len(problems) == 1
    assert "offered by a damaged broken-1.0.dist-info of unknown version" in problems.pop()
    assert described("point-navigation").problem == ""


@pytest.mark.parametrize("contents", [b"[metarl.tasks]\nx\xff = a:b\n", b"[metarl.tasks]\nx\n"])
def test_entry_points_that_cannot_be_read_are_left_out_with_a_warning(install: Install, contents: bytes) -> None:
    install("sound", {"whole": "damaged_family:Maze"}, {"damaged_family.py": FAMILY})
    folder = install("broken", {}, {})
    (folder / "broken-1.0.dist-info" / "entry_points.txt").write_bytes(contents)
    with pytest.warns(UserWarning, match=r"^broken-1.0.dist-info is damaged, and its plugins are left out: "):
        found = {plugin.name: plugin.package for plugin in available("tasks")}
    assert found["whole"] == "sound"
    assert found["point-navigation"] == "metarl-toolkit"


def described(name: str, group: plugins.Group = "tasks") -> plugins.Plugin:
    (found,) = [plugin for plugin in available(group) if plugin.name == name]
    return found


# Finding


def test_a_plugin_is_described_without_importing_it(install: Install) -> None:
    install("alpha-mazes", {"maze": "alpha.mazes:Maze"}, {"alpha/__init__.py": "1 / 0", "alpha/mazes.py": FAMILY})
    assert described("maze") == plugins.Plugin(
        "maze", "tasks", "alpha.mazes:Maze", "alpha-mazes", "1.0", summary="Find the way out.", problem=""
    )
    assert "alpha" not in sys.modules


def test_plugins_are_sorted_by_name(install: Install) -> None:
    install("alpha", {"zebra": "alpha:Maze", "apple": "alpha:Maze", "maze": "alpha:Maze"}, {"alpha.py": FAMILY})
    assert [plugin.name for plugin in available("tasks") if plugin.package == "alpha"] == ["apple", "maze", "zebra"]


def test_groups_are_kept_apart(install: Install) -> None:
    install("alpha", {"maze": "alpha:Maze"}, {"alpha.py": FAMILY})
    assert "maze" not in [plugin.name for plugin in available("algorithms")]


def test_an_unknown_group_is_refused() -> None:
    group: Any = "task"
    message = re.escape("unknown plugin group 'task': expected 'algorithms' or 'tasks'")
    with pytest.raises(ValueError, match=message):
        available(group)
    with pytest.raises(ValueError, match=message):
        load(group, "maze")


def test_the_same_distribution_twice_on_the_path_is_no_clash(install: Install) -> None:
    for _ in range(2):
        install("alpha-mazes", {"maze": "alpha:Maze"}, {"alpha.py": FAMILY})
    assert described("maze").problem == ""
    assert load("tasks", "maze").__name__ == "Maze"


def test_extras_and_spaces_in_an_entry_point_are_dropped(install: Install) -> None:
    install("alpha", {"maze": "alpha : Maze [fast]"}, {"alpha.py": FAMILY})
    assert described("maze").value == "alpha:Maze"


# What can be seen without importing


@pytest.mark.parametrize(
    ("value", "source", "problem"),
    [
        ("absent:Maze", FAMILY, "there is no module 'absent'"),
        ("alpha.inner:Maze", FAMILY, "there is no module 'alpha.inner'"),
        ("alpha:Labyrinth", FAMILY, "the module 'alpha' does not define 'Labyrinth'"),
        ("alpha:Maze", "import foo_bar.baz\n" + FAMILY, "needs 'foo_bar', which is not installed"),
        ("alpha:Maze", "from foo_bar.baz import x\n" + FAMILY, "needs 'foo_bar', which is not installed"),
        ("alpha", FAMILY, "'alpha' is not of the form module:attribute"),
    ],
)
def test_problems_show_without_importing(install: Install, value: str, source: str, problem: str) -> None:
    install("beta", {"maze": value}, {"alpha.py": source})
    assert described("maze").problem == problem
    assert described("maze").summary == ""


def test_an_empty_module_defines_nothing(install: Install) -> None:
    install("alpha", {"maze": "alpha:Maze"}, {"alpha.py": ""})
    assert described("maze").problem == "the module 'alpha' does not define 'Maze'"


def test_a_syntax_error_is_a_problem(install: Install) -> None:
    install("alpha", {"maze": "alpha:Maze"}, {"alpha.py": "class Maze\n"})
    assert described("maze").problem == (
        "the module 'alpha' cannot be parsed: SyntaxError: expected ':' (<unknown>, line 1)"
    )


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    import foo_bar\nexcept ImportError:\n    foo_bar = None\n" + FAMILY,
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import foo_bar\n" + FAMILY,
        "def late():\n    import foo_bar\n" + FAMILY,
        "import os.path, xml.dom\nfrom . import anything\n" + FAMILY,
        FAMILY.replace('"""Find', 'r"""Find') + "pattern = '\\d'\n",
    ],
)
def test_what_may_work_is_no_problem(install: Install, source: str) -> None:
    install("alpha", {"maze": "alpha:Maze"}, {"alpha.py": source})
    assert (described("maze").summary, described("maze").problem) == ("Find the way out.", "")


@pytest.mark.parametrize(
    ("source", "summary"),
    [
        ("from alpha.mazes import Maze", "Find the way out."),
        ("from .mazes import Maze", "Find the way out."),
        ("from .mazes import Other as Maze", ""),
        ("from .absent import Maze", ""),
        ("from .mazes import *", ""),
        ("import alpha.mazes\nMaze = alpha.mazes.Maze", ""),
        ("Maze, other = 1, 2", ""),
        ("for Maze in range(3): pass", ""),
        ("globals().update(Maze=3)", ""),
        ("def __getattr__(name): ...", ""),
        ("if True:\n    class Maze:\n        'Inside.'", "Inside."),
        ("def Maze():\n    'A function.'", "A function."),
    ],
)
def test_definitions_are_found_where_a_module_binds_them(install: Install, source: str, summary: str) -> None:
    install("alpha", {"maze": "alpha:Maze"}, {"alpha/__init__.py": source, "alpha/mazes.py": FAMILY})
    assert (described("maze").summary, described("maze").problem) == (summary, "")


def test_the_imports_of_parent_packages_count(install: Install) -> None:
    install("alpha", {"maze": "alpha.mazes:Maze"}, {"alpha/__init__.py": "import foo_bar", "alpha/mazes.py": FAMILY})
    assert described("maze").problem == "needs 'foo_bar', which is not installed"


def test_namespace_packages_are_followed(install: Install) -> None:
    install("alpha", {"maze": "outer.middle.mazes:Maze"}, {"outer/middle/mazes.py": FAMILY})
    assert described("maze").summary == "Find the way out."


def test_a_compiled_module_has_no_summary_and_no_problem(install: Install) -> None:
    install("alpha", {"maze": "itertools:Maze"}, {})
    assert (described("maze").summary, described("maze").problem) == ("", "")


@pytest.mark.parametrize("name", ["Maze", "big_maze", "big--maze", "2d-maze", "maze."])
def test_names_are_lower_case_words_joined_by_hyphens(install: Install, name: str) -> None:
    install("alpha", {name: "alpha:Maze"}, {"alpha.py": FAMILY})
    problem = f"the name '{name}' is not lower-case words joined by hyphens; ask for alpha:Maze"
    assert described(name).problem == problem
    with pytest.raises(PluginError, match=re.escape(problem)):
        load("tasks", name)


# Loading


def test_a_plugin_is_imported_when_asked_for(install: Install) -> None:
    install("alpha", {"maze-2d": "alpha.mazes:Maze"}, {"alpha/__init__.py": "", "alpha/mazes.py": FAMILY})
    assert load("tasks", "maze-2d") is sys.modules["alpha.mazes"].Maze


def test_module_attribute_is_imported_directly(install: Install) -> None:
    install("alpha", {}, {"alpha.py": "class Outer:\n    class Inner:\n        def build(self, spec): ..."})
    assert load("algorithms", "alpha:Outer.Inner").__name__ == "Inner"


@pytest.mark.parametrize("asked", ["big-mase", "big_maze", "Big-Maze", "big maze"])
def test_an_unknown_name_shows_the_nearest(install: Install, asked: str) -> None:
    install("alpha", {"big-maze": "alpha:Maze", "x": "alpha:Maze"}, {"alpha.py": FAMILY})
    message = f"no task family is called '{asked}'; did you mean 'big-maze'?; `metarl list tasks` shows all names"
    with pytest.raises(PluginError, match=re.escape(message)):
        load("tasks", asked)


def test_an_unknown_name_that_nothing_resembles() -> None:
    message = "no task family is called 'qqqqqq'; `metarl list tasks` shows all names"
    with pytest.raises(PluginError, match=f"^{re.escape(message)}$"):
        load("tasks", "qqqqqq")


def test_a_name_of_the_other_group_is_told(install: Install) -> None:
    install("alpha", {"maze": "alpha:Maze"}, {"alpha.py": FAMILY})
    with pytest.raises(PluginError, match="no algorithm is called 'maze'; it is one of the tasks; `metarl list alg"):
        load("algorithms", "maze")


def test_two_packages_with_one_name_are_both_named(install: Install) -> None:
    install("alpha", {"maze": "alpha:Maze", "other": "alpha:Maze"}, {"alpha.py": FAMILY})
    install("beta", {"maze": "beta.mazes:Maze"}, {"beta/__init__.py": "", "beta/mazes.py": FAMILY}, version="2.1")
    message = (
        "'maze' is offered by alpha 1.0 (alpha:Maze) and beta 2.1 (beta.mazes:Maze); "
        "uninstall all but one, or ask for alpha:Maze or beta.mazes:Maze"
    )
    with pytest.raises(PluginError, match=f"^{re.escape(message)}$"):
        load("tasks", "maze")
    assert [plugin.problem for plugin in available("tasks") if plugin.name == "maze"] == [message, message]
    assert load("tasks", "beta.mazes:Maze").__module__ == "beta.mazes"
    assert load("tasks", "other").__module__ == "alpha"


@pytest.mark.parametrize(
    ("source", "cause", "kind"),
    [
        ("import foo_bar", "importing 'alpha' failed: ModuleNotFoundError: No module named 'foo_bar'", ImportError),
        ("1 / 0", "importing 'alpha' failed: ZeroDivisionError: division by zero", ZeroDivisionError),
        ("raise SystemExit(3)", "importing 'alpha' failed: SystemExit: 3", SystemExit),
    ],
)
def test_a_plugin_that_fails_to_import_is_named_with_its_cause(
    install: Install, source: str, cause: str, kind: type[BaseException]
) -> None:
    install("alpha", {"maze": "alpha:Maze"}, {"alpha.py": source})
    install("beta", {"other": "beta:Maze"}, {"beta.py": FAMILY})
    message = f"cannot load the task family 'maze' of alpha 1.0 (alpha:Maze): {cause}"
    with pytest.raises(PluginError, match=f"^{re.escape(message)}$") as caught:
        load("tasks", "maze")
    assert isinstance(caught.value.__cause__, kind)
    assert load("tasks", "other").__name__ == "Maze"
    assert described("other").problem == ""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("absent:Maze", "there is no module 'absent'; is it installed, or on PYTHONPATH?"),
        ("alpha.absent:Maze", "there is no module 'alpha.absent'; is it installed, or on PYTHONPATH?"),
        ("alpha:Mase", "the module 'alpha' was imported but has no attribute 'Mase'; did you mean 'Maze'?"),
        ("alpha:", "'alpha:' is not of the form module:attribute"),
        (":Maze", "':Maze' is not of the form module:attribute"),
        (".alpha:Maze", "importing '.alpha' failed: TypeError: "),
    ],
)
def test_module_attribute_errors_tell_which_is_missing(install: Install, value: str, message: str) -> None:
    install("alpha", {}, {"alpha.py": FAMILY})
    with pytest.raises(PluginError, match=f"^{re.escape(message)}"):
        load("tasks", value)


def test_what_lacks_the_members_of_its_group_is_refused(install: Install) -> None:
    install("alpha", {"maze": "alpha:Maze"}, {"alpha.py": "class Maze: ..."})
    message = "the task family 'maze' of alpha 1.0 (alpha:Maze) has no 'sample' and no 'spec'"
    with pytest.raises(PluginError, match=re.escape(message)):
        load("tasks", "maze")
    with pytest.raises(PluginError, match="the algorithm alpha:Maze has no 'build'"):
        load("algorithms", "alpha:Maze")


def test_a_dataclass_field_without_default_is_a_member(install: Install) -> None:
    source = "import dataclasses\n@dataclasses.dataclass\nclass Maze:\n    spec: object\n    def sample(self): ..."
    install("alpha", {"maze": "alpha:Maze"}, {"alpha.py": source})
    assert load("tasks", "maze").__name__ == "Maze"


# Cost


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys, metarl, metarl.plugins as p; p.available('tasks'); p.available('algorithms'); metarl.__version__;"
        "print(sorted({'torch', 'numpy', 'gymnasium', 'tyro', 'metarl_envs', 'metarl_plugins'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

"""The packages that ``metarl new`` writes: installed beside metarl's own wheel, they work without an edit."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest

from metarl.commands import new

ROOT = Path(__file__).parents[1]
FAMILIES = {f"try-{kind}": ["tasks", "--kind", kind] for kind in new.KINDS}
WRITTEN = {**FAMILIES, "try-algorithm": ["algorithm"], "try-outer": ["outer"]}
"""Names, and what is asked of ``metarl new`` besides."""
USED = """
import sys
from metarl import cli
assert cli.__file__.startswith(sys.argv[1])
OTHERS = {"try-algorithm": ["try-algorithm", "sinusoid"], "try-outer": ["maml", "sinusoid", "--outer", "try-outer"]}
for name in sys.argv[2:]:
    parts = OTHERS.get(name, ["maml", name])
    options = ["--iterations", "2", "--meta-batch-size", "2", "--quiet", "--device", "cpu"]
    for command in (["check", name], ["train", *parts, *options]):
        if code := cli.main(command):
            sys.exit(f"{command} gave {code}")
"""


def run(arguments: list[str], folder: Path, site: Path | None = None, python: str = sys.executable) -> str:
    """Run Python, in which the packages of ``site`` come first, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {} if site is None else {"PYTHONPATH": str(site)}
    done = subprocess.run([python, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(site: Path, *projects: Path) -> None:
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(site)]
    run(["-m", "pip", "install", *options, *map(str, projects)], site.parent)


@pytest.mark.slow
def test_written_packages_are_installed_listed_checked_tested_and_trained(tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    install(site, ROOT)
    for name, (what, *options) in WRITTEN.items():
        run(["-m", "metarl", "new", what, name, *options], work, site)
    install(site, *(work / name for name in WRITTEN))
    listed = run(["-m", "metarl", "list"], work, site)
    for name in WRITTEN:
        assert re.search(rf"^  {name} +\S.*\[{name} 0.1.0\]$", listed, re.MULTILINE)
    assert "BROKEN" not in listed
    said = run(["-c", USED, str(site), *WRITTEN], work, site)
    assert "FAILED" not in said
    assert said.count("ok       record") == len(WRITTEN)
    tests = [str(path) for path in sorted(work.glob("*/tests/test_*.py"))]
    assert len(tests) == len(WRITTEN)
    assert " passed" in run(["-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *tests], work, site)


def inner_environment(folder: Path) -> tuple[str, Path]:
    """Make a virtual environment that sees this one's packages. Return its Python, and where its own packages lie."""
    venv.create(folder)
    base = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", "venv", base))
    (own / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return str(Path(sysconfig.get_path("scripts", "venv", base)) / "python"), own


@pytest.mark.slow
@pytest.mark.parametrize("what", ["tasks", "algorithm", "outer"])
def test_a_written_package_asks_for_nothing_but_the_toolkit(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nowhere to fetch from: pip would stop at whatever is not installed, such as another project's metarl."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    python, own = inner_environment(tmp_path / "inner")
    run(["-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(ROOT)], tmp_path)
    run(["-m", "metarl", "new", what, "try-it"], tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    options = ["--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    run(["-m", "pip", "install", *options, str(wheel), "./try-it"], tmp_path, python=python)
    # Where the same version is installed already, and not as a checkout, pip leaves it at that.
    found = {distribution.name: distribution for distribution in metadata.distributions(path=[str(own)])}
    assert {"try-it"} <= set(found) <= {"try-it", "metarl-toolkit"}
    assert [asked for asked in found["try-it"].requires or [] if "extra ==" not in asked] == ["metarl-toolkit"]
    listed = run(["-m", "metarl", "list"], tmp_path, python=python)
    assert re.search(r"^  try-it +\S.*\[try-it 0.1.0\]$", listed, re.MULTILINE)
    assert "BROKEN" not in listed


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["q", "quite-a-long-name"])
def test_written_packages_are_linted_formatted_and_typed(prefix: str, tmp_path: Path) -> None:
    names = {f"{prefix}-{name}": arguments for name, arguments in WRITTEN.items()}
    for name, asked in names.items():
        new.write(tmp_path / name, new.render(name, asked[-1]))
        ruff = ["--config", str(ROOT / "pyproject.toml"), "--config", 'src=["."]', "--no-cache"]
        run(["-m", "ruff", "check", *ruff, "."], tmp_path / name)
        run(["-m", "ruff", "format", "--check", *ruff, "."], tmp_path / name)
    paths = [str(tmp_path / name) for name in names]
    modules = [word for name in names for word in ("--package", new.Names.of(name).module)]
    cache = ["--cache-dir", str(ROOT / ".mypy_cache")]
    command = ["-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), *cache, *modules]
    environment = {**os.environ, "MYPYPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

"""The README and every page of the documentation: their blocks run, their links lead somewhere."""

import ast
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import pages

import metarl
from metarl_plugins import omniglot

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    with pages.own_modules(tmp_path):
        yield tmp_path


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let noise stand for Omniglot."""
    characters = omniglot.RANDOM_SIZES
    count = sum(characters)
    images = torch.randint(256, (count * 20, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    names = tuple(f"Alphabet/character{number:04}" for number in range(count))
    drawings = omniglot.Drawings(images, torch.arange(count).repeat_interleave(20), names, (False,) * count)
    monkeypatch.setattr(omniglot, "located", lambda root: Path())
    monkeypatch.setattr(omniglot, "load", lambda folder: drawings)


def write_images(root: Path) -> None:
    """Let 50 classes of 30 small images of noise stand for mini-ImageNet."""
    noise = np.random.default_rng(0)
    for name in range(50):
        (root / f"class{name}").mkdir(parents=True)
        for image in range(30):
            pixels = noise.integers(256, size=(4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class{name}" / f"{image}.png")


@pytest.mark.slow
@pytest.mark.usefixtures("drawings")
@pytest.mark.parametrize("page", [page for page in PAGES if pages.blocks(page.read_text("utf-8"))], ids=name)
def test_blocks_run(page: Path, empty_folder: Path) -> None:
    torch.set_num_threads(1)
    text = page.read_text(encoding="utf-8")
    if "data/mini-imagenet" in text:
        write_images(empty_folder / "data" / "mini-imagenet")
    pages.run(text, name(page))


def anchors(text: str) -> set[str]:
    """Names of the headings that a link may lead to, by the rule that MkDocs and GitHub share."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def broken_links(page: Path) -> list[str]:
    text, broken = page.read_text(encoding="utf-8"), []
    for found in re.finditer(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", text, re.MULTILINE):
        link = found[1] or found[2]
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def messages(text: str) -> list[str]:
    """Return what a page of troubles quotes in its headings, and in the first columns of tables of messages."""
    headings = re.findall(r"^### (.+)$", text, re.MULTILINE)
    tables = re.findall(r"^\| message \|.*\n\|-.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    cells = [row.split("|")[1] for table in tables for row in table.splitlines()]
    return [quoted for told in [*headings, *cells] for quoted in re.findall("`([^`]+)`", told)]


OF_OTHERS = {"'NoneType' object has no attribute 'glGetError'", "metarl list"}


def test_quoted_messages_are_those_of_the_code() -> None:
    files = [path for folder in ("metarl", "envs", "plugins") for path in (ROOT / folder).rglob("*.py")]
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text(encoding="utf-8") for path in files))
    said = re.sub(r"\{[^{}\n]*\}", "'xyz'", source)
    quoted = messages((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(quoted) > 20
    assert [
        told for told in quoted if told not in OF_OTHERS and any(part not in said for part in told.split(" ... "))
    ] == []


def test_broken_links_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Some heading, with `code`\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#some-heading-with-code) [b](other.md#gone) [c](absent.md) [d](https://x.org)\n\n"
        "[e]: other.md\n[f]: lost.md\n",
        "utf-8",
    )
    assert broken_links(page) == ["other.md#gone", "absent.md", "lost.md"]


JOBS = {
    "algorithms.md": ["class MyAlgorithm"],
    "task_plugins.md": ['splits={"test"'],
    "own_loop.md": ["with save_run"],
    "notebook.md": ["run.adapt(task, steps=1)", "train(MAML(step_size=0.5), family"],
}
"""What users write themselves, and texts of the blocks in which they do."""
MOST_LINES = 15


def own_lines(code: str) -> int:
    """Count the lines of code, without imports, docstrings, comments and what stands under a field as its help."""
    tree = ast.parse(code)
    left_out: set[int] = set()
    for node in ast.walk(tree):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if text or isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = [line for line, text in enumerate(code.splitlines(), start=1) if text.strip() and text.strip()[0] != "#"]
    return len(set(lines) - left_out)


@pytest.mark.parametrize("page", JOBS)
def test_what_users_write_themselves_is_short(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for part in JOBS[page]:
        found = [block.code for block in pages.blocks(text) if part in block.code]
        assert found, f"{page} has no block with {part}"
        assert [own_lines(code) for code in found if own_lines(code) > MOST_LINES] == []


def test_blocks_are_found() -> None:
    text = '# A\n```sh\nmetarl list\n```\n<!-- not run: hours -->\n```python\nx = 1\n```\n```python title="m.py"\n```\n'
    assert pages.blocks(text) == [
        ("sh", "metarl list\n", 2, None, None),
        ("python", "x = 1\n", 6, None, "hours"),
        ("python", "", 9, "m.py", None),
    ]
    with pytest.raises(ValueError, match="line 2: tell why the block is not run"):
        pages.blocks("<!-- not run: -->\n```sh\n```\n")


def test_shell_is_read_without_being_run(empty_folder: Path) -> None:
    script = """for seed in 0 1; do  # a comment
      common="--seed $seed"
      metarl train maml bandit $common \\
        --out runs/$seed
    done; make demo && touch here
    metarl plot runs/*"""
    assert pages.calls(script) == [
        ["train", "maml", "bandit", "--seed", "0", "--out", "runs/0"],
        ["train", "maml", "bandit", "--seed", "1", "--out", "runs/1"],
        ["plot", "runs/*"],
    ]
    assert list(empty_folder.iterdir()) == []


def test_commands_are_cut(empty_folder: Path) -> None:
    asked = ["train", "maml", "bandit", "--iterations", "500", "--seed", "1"]
    assert pages.cut(asked) == ["train", "maml", "bandit", "--seed", "1", "--iterations", "2", "--meta-batch-size", "2"]
    assert pages.cut(["train", "maml", "bandit", "--help"]) == ["train", "maml", "bandit", "--help"]
    for run in "ab":
        (empty_folder / "runs" / run).mkdir(parents=True)
    assert pages.cut(["plot", "runs/*"]) == ["plot", "runs/a", "runs/b"]


@pytest.mark.parametrize(
    ("page", "error", "message"),
    [
        ("```python\nimport metarl\nmetarl.trian\n```", AttributeError, "trian"),
        ("```sh\nmetarl train maml bandits\n```", AssertionError, "metarl train maml bandits ended with exit code 2"),
        ("<!-- not run: hours -->\n```sh\nmetarl train maml bandit --step 1\n```", ValueError, "--step"),
        ("<!-- not run: hours -->\n```python\n1 +\n```", SyntaxError, "invalid syntax"),
    ],
)
def test_broken_blocks_are_noticed(page: str, error: type[Exception], message: str, empty_folder: Path) -> None:
    with pytest.raises(error, match=message):
        pages.run(page)


def test_titled_blocks_become_modules(empty_folder: Path) -> None:
    pages.run(
        '```python title="own_module.py"\nanswer = 42\n```\n```python\nfrom own_module import answer as found\n```'
    )
    assert (empty_folder / "own_module.py").read_text(encoding="utf-8") == "answer = 42\n"


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate_commands", ROOT / "docs" / "generate_commands.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_commands_are_described_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # the reader's terminal does not matter
    monkeypatch.delenv("METARL_DATA", raising=False)
    written = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert generator().page() == written, "docs/commands.md is stale: run python docs/generate_commands.py"
    assert os.environ["COLUMNS"] == "200"


@pytest.mark.parametrize("name", metarl.__all__)
def test_public_names_are_in_the_reference(name: str) -> None:
    folder = ROOT / "docs" / "reference"
    assert f"`{name}`" in (folder / "metarl.md").read_text(encoding="utf-8")
    home = metarl._HOMES.get(name)
    if home is None:
        return
    shown = "".join(page.read_text(encoding="utf-8") for page in folder.glob("*.md"))
    entry = re.search(rf"^::: {home}(\.{name})?$(\n    options:\n      members: (\[.*\]))?", shown, re.MULTILINE)
    assert entry is not None, f"no page shows {home}.{name}"
    assert entry[1] or entry[3] is None or re.search(rf"\b{name}\b", entry[3])


def test_navigation_holds_every_page() -> None:
    told = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = sorted(page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.parent != ROOT)
    assert sorted(re.findall(r": ([\w/]+\.md)$", told, re.MULTILINE)) == pages


def test_the_site_fetches_nothing_and_is_searched_from_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    mkdocs = pytest.importorskip("mkdocs.config", reason="the documentation's tools are not installed")
    config = mkdocs.load_config(str(ROOT / "mkdocs.yml"))
    config = config.plugins.on_config(config)  # plugins add scripts of their own
    assert config.theme["font"] is False
    assert "offline" in " ".join(config.plugins)
    scripts = [str(script) for script in (*config.extra["polyfills"], *config.extra_javascript, *config.extra_css)]
    assert [script for script in scripts if "//" in script] == []
    assert any("iframe-worker" in script for script in scripts)
    ours = [script for script in scripts if script.startswith("theme/")]
    assert ours and all((ROOT / "docs" / script).is_file() for script in ours)


def test_an_outer_update_takes_at_most_15_lines() -> None:
    """That its block runs, and that its update keeps the contract, is tried by the page itself."""
    found = pages.blocks((ROOT / "docs" / "outer_updates.md").read_text("utf-8"))
    (code,) = (block.code for block in found if "class SignDescent" in block.code)
    own = [line for line in code.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
    assert len(own) <= 15, own

"""``metarl report``: a page that holds all that it shows, runs nothing, and takes no name for markup."""

import html.parser
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metarl import runs
from metarl.cli import main
from metarl.evaluation import reliable, summary
from metarl.runs.layout import FORMAT

Captured = pytest.CaptureFixture[str]
NOISE = np.random.default_rng(3)
LEFT, RIGHT = NOISE.normal(size=(2, 2, 6)), NOISE.normal(0.5, 1, size=(2, 1, 6))  # [step, seed, task]
EVIL = """<script>alert("x")</script><img src=x onerror='alert(1)'>&amp;"""
ROWS = "iteration,return/step_0,return/step_1\n1,1.0,2.0\n2,1.5,2.5\n3,2.0,3.5\n"
EMPTY = {"meta", "img", "link", "br"}
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)


class Page(html.parser.HTMLParser):
    """The elements, texts and attributes of a page. Elements that are not closed in order are an error."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements, self.attributes, self.texts = list[str](), list[tuple[str, str, str]](), list[str]()
        self.tables, self._open = list[list[list[str]]](), list[str]()
        self.feed(markup)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.elements.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in EMPTY:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if data.strip() and self._open[-1:] != ["style"]:
            self.texts.append(data.strip())


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a run folder with an evaluation of given scores ``[step, task]``."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, scores: np.ndarray | None, seed: int = 0, options: Any = None, **changes: Any) -> Path:
        folder = Path(name)
        folder.mkdir(parents=True)
        config = {
            "format": FORMAT,
            "algorithm": {"reference": "maml", "options": options or {"steps": 1}},
            "tasks": {"reference": "bandit", "options": {"arms": 5}},
            "outer": {"reference": "adam", "options": {}},
            "settings": {"iterations": 3, "seed": seed},
            "versions": {"metarl": "0.1"},
        }
        runs.write_record(folder / "config.json", config)
        (folder / "progress.csv").write_text(ROWS, encoding="utf-8")
        if scores is not None:
            metrics = {f"return/step_{step}": summary(row.tolist()) for step, row in enumerate(scores)}
            asked = {"tasks": scores.shape[1], "split": "test", "seed": 0, "steps": len(scores) - 1, "episodes": None}
            family = {"reference": "bandit", "options": {"arms": 5}}
            runs.write_record(folder / "evaluation.json", {"metrics": metrics, **asked, "family": family, **changes})
        return folder

    return run


def reported(*words: Any) -> Page:
    assert main(["report", *map(str, words), "--out", "new/report.html"]) == 0
    markup = Path("new/report.html").read_text(encoding="utf-8")
    page = Page(markup)
    assert {"script", "iframe", "object", "embed", "link", "form", "a"}.isdisjoint(page.elements)
    assert all(value.startswith("data:image/") for tag, name, value in page.attributes if name in ("src", "href"))
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes
    assert "url(" not in markup and "@import" not in markup
    return page


def test_a_run_is_told_with_its_curves_scores_options_and_pictures(write: Callable[..., Path]) -> None:
    folder = write("runs/left", LEFT[:, 0])
    Image.new("RGB", (4, 4), "red").save(folder / "predictions.png")
    page = reported(folder)
    assert page.texts[0] == "Report on left" and "Comparison" not in page.texts
    kinds = [value.partition(";")[0] for _, name, value in page.attributes if name == "src"]
    assert kinds == ["data:image/svg+xml", "data:image/svg+xml", "data:image/png"]
    scores, told, options = page.tables
    mean, half = LEFT[0, 0].mean(), summary(LEFT[0, 0].tolist())
    assert scores[1] == ["left", "6 test", "return/step_0", f"{mean:.4g}", f"{half['low']:.4g} to {half['high']:.4g}"]
    assert ["state", "no checkpoint yet, iteration 0 of 3 (0%)"] in told
    assert ["algorithm.steps", "1"] in options and ["version of metarl", "0.1"] in options


def test_groups_are_compared_as_the_command_compares_them(write: Callable[..., Path]) -> None:
    for seed in (0, 1):
        write(f"left/seed-{seed}", LEFT[:, seed], seed)
    page = reported("left", write("right", RIGHT[:, 0]))
    comparison = next(table for table in page.tables if table[0][:3] == ["score", "run", "seeds"])
    found = reliable.paired_difference(LEFT[1], RIGHT[1])
    expected = f"{found.value:+.4g} [{found.low:+.4g}, {found.high:+.4g}]"
    assert comparison[-1][:3] == ["return/step_1", "right", "1"] and comparison[-1][5] == expected
    assert len([value for _, name, value in page.attributes if name == "src"]) == 3


def test_what_cannot_be_told_is_named(write: Callable[..., Path]) -> None:
    page = reported(write("one", LEFT[:, 0]), write("two", LEFT[:, 1], split="train"), write("none", None))
    assert "not evaluated so far: none" in page.texts
    assert any(text.startswith("not compared: none has not been evaluated") for text in page.texts)


def test_names_are_no_markup(write: Callable[..., Path]) -> None:
    folder = write(f"runs/{EVIL.replace('/', '')}", LEFT[:, 0], options={"name": f"{EVIL}\x1b[31m"}, split=EVIL)
    (folder / "tasks.png").write_bytes(b"\x89PNG")
    page = reported(folder, "--title", EVIL)
    assert EVIL in page.texts and page.texts[0] == EVIL
    assert any(row[0] == "algorithm.name" and row[1] == f"{EVIL}\\x1b[31m" for table in page.tables for row in table)
    assert all("alert" not in value for _, name, value in page.attributes if name not in ("alt", "src"))
    assert page.elements.count("img") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "report needs at least one run or group"),
        (["run", "run"], "a run is named twice: name each run or group once"),
        (["run", "--out", "report.pdf"], "--out report.pdf: expected a file that ends in .html"),
        (
            ["run", "--out", "there.html"],
            "--out there.html exists; choose another file, or replace it",
        ),
        (["lost"], "lost"),
    ],
)
def test_wrong_requests_take_one_line(write: Callable[..., Path], capsys: Captured, words: Any, message: str) -> None:
    write("run", LEFT[:, 0])
    Path("there.html").write_text("mine", encoding="utf-8")
    assert main(["report", *words]) == 2
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1 and message in told.err
    assert Path("there.html").read_text(encoding="utf-8") == "mine" and not Path("report.html").exists()
    assert main(["report", "run", "--out", "there.html", "--overwrite"]) == 0


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_shows_it_without_a_complaint(write: Callable[..., Path], tmp_path: Path) -> None:
    reported(write(f"runs/{EVIL.replace('/', '')}", LEFT[:, 0], split=EVIL), write("other", RIGHT[:, 0], split=EVIL))
    told = subprocess.run(
        [
            str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1000,1500",
            "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'seen.png'}",
            (tmp_path / "new" / "report.html").as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=600,
    ).stderr  # fmt: skip
    assert "CONSOLE" not in told
    with Image.open(tmp_path / "seen.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # the curves of both runs
        assert (abs(pixels - np.array(colour)).max(-1) < 8).sum() > 100

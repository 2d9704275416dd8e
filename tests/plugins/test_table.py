"""A table in a file, from the command line."""

import json
from pathlib import Path

import pytest
import torch

import metarl
from metarl import cli, testing
from metarl_plugins.regression.table import Table

HOUSES = "metarl_plugins.regression.table:Table"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Houses: the price is a multiple of the area that differs between towns, which have 6 to 15 of them."""
    generator, lines = torch.Generator().manual_seed(0), ["town,area,rooms,price"]
    for town in range(20):
        for area in (50 + 100 * torch.rand(6 + town % 10, generator=generator)).tolist():
            lines.append(f"town-{town},{area:.3f},{1 + int(area / 40)},{area * (1000 + 100 * town):.0f}")
    path = tmp_path / "houses.csv"
    path.write_text("\n".join(lines))
    return path


def test_the_family_holds_the_contract(file: Path) -> None:
    testing.check_family(Table(file=file, group="town", target="price", shots=(2, 5), queries=(1, 4)))


def test_a_table_is_trained_on_from_the_command_line(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [
        "--tasks.file", str(file), "--tasks.group", "town", "--tasks.target", "price",
        "--tasks.shots", "2", "5", "--tasks.queries", "1", "4",
    ]  # fmt: skip
    assert cli.main(["train", "maml", HOUSES, *options, "--iterations", "30", "--out", str(out), "--quiet"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["units"]["targets"]["mean"][0] > 50_000
    assert cli.main(["evaluate", str(out), "--tasks", "4"]) == 0
    found = json.loads((out / "evaluation.json").read_text())
    assert sorted(found["parameters"]) == ["group", "shots"]
    model = metarl.open_run(out).fit([[60.0, 2], [90, 3], [140, 4]], [60_000.0, 90_000, 140_000])
    assert 10_000 < float(model.predict([[100.0, 3]])[0]) < 400_000


def test_a_table_must_be_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["train", "maml", HOUSES, "--out", str(tmp_path / "run")]) == 2
    assert "which table? Name a CSV file with --tasks.file" in capsys.readouterr().err


def test_splits_follow_their_seed(file: Path) -> None:
    family = Table(file=file, group="town", target="price", shots=2, split_seed=3, fractions=(0.5, 0.0, 0.5))
    other = Table(file=file, group="town", target="price", shots=2, split_seed=4, fractions=(0.5, 0.0, 0.5))
    groups = [one.sample(200, "test", torch.Generator().manual_seed(0)).parameters["group"] for one in (family, other)]
    assert len(groups[0].unique()) == 10
    assert groups[0].unique().tolist() != groups[1].unique().tolist()

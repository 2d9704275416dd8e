"""Runs of families in standard units: models predict in the user's units, also from files and as exported programs."""

import dataclasses
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import metarl
from metarl import cli, origins, runs
from metarl.fewshot import NWayKShot, TableRegression, TableTasks
from metarl.networks import Network
from metarl.training import Settings
from metarl.types import Split

GROUPS = torch.arange(200) % 20
CELSIUS = 20 + 5 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
YIELD = (1000 * CELSIUS[:, 0] + 100 * GROUPS).double()
SPLITS = {"train": range(14), "test": range(14, 20)}
ALGORITHM = metarl.MAML(step_size=0.05, network=Network(hidden=(16,), activation="tanh"))


@pytest.fixture(scope="module")
def module() -> Iterator[ModuleType]:
    made: Any = ModuleType("crops")
    made.table = TableRegression(CELSIUS, YIELD, GROUPS, shots=5, splits=SPLITS)
    made.warmer = TableRegression(CELSIUS + 100, YIELD, GROUPS, shots=5, splits=SPLITS)
    made.raw = TableRegression(CELSIUS, YIELD, GROUPS, shots=5, splits=SPLITS, normalise=False)
    pixels = (torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 99 + 100).to(torch.uint8)
    made.images = NWayKShot(pixels, torch.arange(120) % 12, ways=2, normalise=True)
    sys.modules["crops"] = made
    yield made
    del sys.modules["crops"]


@pytest.fixture(scope="module")
def run(module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("units") / "run"
    settings = Settings(iterations=300, meta_batch_size=8)
    metarl.train(ALGORITHM, "crops:table", metarl.Adam(learning_rate=0.01), settings, out=out)
    return out


def test_a_run_records_its_units(run: Path, module: ModuleType) -> None:
    told = runs.read_config(run)["units"]
    training = torch.isin(GROUPS, torch.arange(14))
    assert told["inputs"]["mean"] == pytest.approx(CELSIUS[training].double().mean(0).tolist())
    assert told["targets"]["std"] == pytest.approx([YIELD[training].std(correction=0).item()])
    units = origins.units_of(json.loads(json.dumps({"units": told})))
    assert units.inputs is not None
    assert torch.equal(units.inputs.mean, module.table.units().inputs.mean)


def test_predictions_are_in_the_units_of_the_table(run: Path, tmp_path: Path) -> None:
    trained = metarl.open_run(run)
    mine = GROUPS == 15
    inputs, targets = CELSIUS[mine].numpy(), YIELD[mine].numpy()
    model = trained.fit(inputs[:6], targets[:6], steps=3)
    found = model.predict(inputs[6:])
    # The yields are around 21500, and differ by 5000 within a group.
    assert abs(found - targets[6:]).max() < 2500
    assert model.score(inputs[6:], targets[6:]) > 0.5
    model.save(tmp_path / "model")
    again = metarl.load_model(tmp_path / "model")
    assert np.allclose(again.predict(inputs[6:]), found, rtol=1e-5)
    model.export(tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert np.allclose(program(torch.from_numpy(inputs[6:]))[:, 0].detach().numpy(), found, rtol=1e-4)
    score = json.loads((tmp_path / "model.pt2.card.json").read_text())["scores"]["mean squared error/support"]
    assert score == pytest.approx(np.square(model.predict(inputs[:6]) - targets[:6]).mean(), rel=1e-3)


def test_predictors_are_in_the_units_of_the_table(run: Path) -> None:
    trained = metarl.open_run(run)
    task = trained.tasks()
    inputs = CELSIUS[int(task.parameters["group"]) == GROUPS]
    predict = trained.predictor(task, steps=3)
    assert (predict(inputs)[:, 0] - YIELD[int(task.parameters["group"]) == GROUPS]).abs().max() < 2500


def test_other_tables_are_brought_into_the_units_of_training(run: Path, tmp_path: Path) -> None:
    """A table that is 100 degrees warmer has the same standard units of its own: its scores must not be as good."""
    for name in ("table", "warmer"):
        assert cli.main(["evaluate", str(run), "--on", f"crops:{name}", "--out", str(tmp_path / f"{name}.json")]) == 0
    losses = {
        name: json.loads((tmp_path / f"{name}.json").read_text())["metrics"]["loss/step_1"]["mean"]
        for name in ("table", "warmer")
    }
    assert losses["warmer"] > 2 * losses["table"]


def test_runs_of_earlier_versions_had_no_units(run: Path, module: ModuleType, tmp_path: Path) -> None:
    config = {name: value for name, value in runs.read_config(run).items() if name != "units"}
    family = origins.in_recorded_units(config, module.table)
    drawn = family.sample(3, "test", torch.Generator().manual_seed(0)).draw("query", torch.Generator())  # type: ignore[union-attr]
    assert drawn.targets.min() > 1000
    recorded = origins.in_recorded_units(runs.read_config(run), module.warmer)
    drawn = recorded.sample(3, "test", torch.Generator().manual_seed(0)).draw("query", torch.Generator())  # type: ignore[union-attr]
    assert drawn.inputs.min() > 10  # 100 degrees are 20 standard deviations


def test_images_in_standard_units_are_predicted_from_pixels(module: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    trained = metarl.train(ALGORITHM, module.images, settings=Settings(iterations=3, meta_batch_size=2))
    drawn = module.images.sample(9, "train", torch.Generator().manual_seed(0)).draw("query", torch.Generator())
    assert drawn.inputs.mean().abs() < 0.2
    assert drawn.inputs.std() == pytest.approx(1, abs=0.2)
    pixels = module.images.inputs[:10].numpy()
    model = trained.fit(pixels[:4], ["a", "b", "a", "b"])
    program = model.export(tmp_path / "images.pt2")
    found = torch.export.load(program).module()(torch.from_numpy(pixels[4:])).detach().numpy()
    assert np.allclose(found, model.predict_proba(pixels[4:]), atol=1e-4)
    read = model.preparing.tensor(pixels[:2])
    standard = module.images.units().inputs
    torch.testing.assert_close(read, standard.apply(module.images.inputs[:2].double() / 255))


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A family that wraps a table, and tells nothing of its units."""

    normalise: bool = True

    @property
    def spec(self) -> metarl.Spec:
        return self._table.spec

    def sample(self, num_tasks: int, split: Split, generator: torch.Generator) -> TableTasks:
        return self._table.sample(num_tasks, split, generator)

    @functools.cached_property
    def _table(self) -> TableRegression:
        return TableRegression(CELSIUS, YIELD, GROUPS, shots=5, splits=SPLITS, normalise=self.normalise)


def test_units_of_a_wrapped_table_are_found() -> None:
    trained = metarl.train(ALGORITHM, Wrapped(), settings=Settings(iterations=2, meta_batch_size=2))
    found = trained.fit(CELSIUS[:5].numpy(), YIELD[:5].numpy()).predict(CELSIUS[:5].numpy())
    assert found.mean() > 10_000
    config = origins.recorded_units(Wrapped())
    origins.check_units(config, Wrapped())
    assert origins.in_recorded_units(config, Wrapped()) == Wrapped()
    assert origins.recorded_units(Wrapped(normalise=False)) == {}
    with pytest.raises(runs.RunError, match="the tasks of Wrapped are in other units than those of the run"):
        origins.check_units({}, Wrapped())

"""Models of one's own examples: scikit-learn's habits, for every learner, from arrays, files and tables."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

import metarl
from metarl import Settings
from metarl.algorithms import MAML
from metarl.algorithms.protonet import ProtoNet
from metarl.fewshot import NWayKShot, Regression
from metarl.networks import Network
from metarl.types import Examples
from metarl_plugins.images import Images

SETTINGS = Settings(iterations=2, meta_batch_size=2, device="cpu")
BASES = torch.rand(20, 6, generator=Generator().manual_seed(0))
LABELS = torch.arange(20).repeat_interleave(8)
POINTS = BASES[LABELS] + 0.05 * torch.rand(160, 6, generator=Generator().manual_seed(1))
DOTS = NWayKShot(POINTS, LABELS, ways=3, shots=2)
LINES = Regression(lambda inputs, slope: slope * inputs, {"slope": (-1.0, 1.0)}, shots=5)
NAMES = ["ant", "bee", "cat", "dog"]
FOUR = [NAMES[label] for label in LABELS[:32].tolist()]
LEARNERS = (
    "maml", "reptile", "multitask", "cavia", "imaml", "bmaml", "leap", "meta-lstm", "protonet", "matching", "siamese",
    "mann", "rl2",
)  # fmt: skip


@pytest.fixture(scope="module")
def metric() -> metarl.Trained:
    return metarl.train(ProtoNet(network=Network(hidden=(8,))), DOTS, settings=SETTINGS)


@pytest.fixture(scope="module")
def gradient() -> metarl.Trained:
    return metarl.train(MAML(network=Network(hidden=(8,)), step_size=0.3), DOTS, settings=SETTINGS)


@pytest.fixture(scope="module")
def lines() -> metarl.Trained:
    return metarl.train(MAML(network=Network(hidden=(8,)), step_size=0.05), LINES, settings=SETTINGS)


@pytest.fixture(scope="module")
def pictures() -> metarl.Trained:
    family = Images(size=8, ways=2)
    learner = ProtoNet(network=Network(hidden=(8,))).build(family.spec)
    params = learner.init(Generator().manual_seed(0))
    return metarl.Trained(ProtoNet(network=Network(hidden=(8,))), family, learner, params, torch.device("cpu"), 0)


def painted(folder: Path, classes: tuple[str, ...] = ("red", "blue"), each: int = 3) -> Path:
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for image in range(each):
            pixels = np.full((10, 10, 3), 20 * image, dtype=np.uint8)
            pixels[..., 2 * place] = 230
            Image.fromarray(pixels).save(folder / name / f"{image}.png")
    return folder


def test_predictions_are_those_of_the_learners_own_functions(gradient: metarl.Trained) -> None:
    inputs, names = POINTS[:24], FOUR[:24]
    model = gradient.fit(inputs, names)
    order = torch.randperm(24, generator=metarl_stream())
    support = Examples(inputs=inputs[order][None], targets=LABELS[:24][order][None])
    learner = gradient.learner
    state = learner.adapt(learner.begin(gradient.params, torch.zeros(1, 0)), support)
    expected = learner.predict(state, inputs[None])[0][0].softmax(-1).detach().numpy()
    np.testing.assert_allclose(model.predict_proba(inputs), expected, rtol=1e-5)
    assert model.predict(inputs).tolist() == [NAMES[place] for place in expected.argmax(1)]
    assert model.score(inputs, names) == np.mean(
        [NAMES[p] == n for p, n in zip(expected.argmax(1), names, strict=True)]
    )


def metarl_stream() -> Generator:
    from metarl.seeding import stream

    return stream(0, "fit")


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_fits_fewer_classes_and_unequal_shots_and_is_saved(name: str, tmp_path: Path) -> None:
    trained = metarl.train(name, DOTS, settings=SETTINGS)
    model = trained.fit(POINTS[:13], FOUR[:13])  # 8 ants and 5 bees, where training had 3 classes of 2
    chances = model.predict_proba(POINTS[:40])
    assert chances.shape == (40, 2)
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)
    opened = metarl.load_model(model.save(tmp_path / "model"))
    np.testing.assert_allclose(opened.predict_proba(POINTS[:40]), chances, atol=1e-6)
    assert opened.classes == ("ant", "bee")


def test_more_classes_than_in_training_where_the_network_allows_it(
    metric: metarl.Trained, gradient: metarl.Trained
) -> None:
    model = metric.fit(POINTS[:32], FOUR)
    assert model.predict_proba(POINTS[:5]).shape == (5, 4)
    assert model.score(POINTS[:32], FOUR) > 0.9
    with pytest.raises(ValueError, match="of 4 classes, and this run's MAML tells at most 3 apart"):
        gradient.fit(POINTS[:32], FOUR)


@pytest.mark.parametrize("names", [["b", "a"], [7, -2], [(1, "x"), (0, "y")], ["1", 2], [None, "no"], [True, False]])
def test_classes_of_any_kind_keep_their_names(metric: metarl.Trained, names: list[object], tmp_path: Path) -> None:
    model = metric.fit(POINTS[:16], [names[label] for label in LABELS[:16].tolist()])
    assert list(model.predict(POINTS[[0, 8]])) == names
    opened = metarl.load_model(model.save(tmp_path / "model"))
    assert list(opened.predict(POINTS[[0, 8]])) == names
    assert list(map(type, opened.classes)) == list(map(type, model.classes))


def test_fitting_again_replaces_what_was_fitted(metric: metarl.Trained) -> None:
    model = metric.fit(POINTS[:16], FOUR[:16])
    assert model.fit(POINTS[16:32], FOUR[16:]) is model
    assert model.predict(POINTS[16:32]).tolist() == FOUR[16:]
    before = model.predict_proba(POINTS[:8])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(POINTS[:8]), before)
    with pytest.raises(ValueError, match="only the class 'ant'"):
        model.fit(POINTS[:8], FOUR[:8])
    np.testing.assert_array_equal(model.predict_proba(POINTS[:8]), before)


def test_values_have_the_coefficient_of_determination(lines: metarl.Trained, tmp_path: Path) -> None:
    inputs = torch.linspace(-1, 1, 9).unsqueeze(1)
    targets = 0.5 * inputs[:, 0]
    model = lines.fit(inputs, targets, steps=5)
    found = model.predict(inputs)
    assert found.shape == (9,)
    missed = float(((targets.numpy() - found) ** 2).sum() / ((targets - targets.mean()) ** 2).sum())
    assert model.score(inputs, targets) == pytest.approx(1 - missed, abs=1e-5)
    table = tmp_path / "points.csv"
    table.write_text("x,y\n" + "\n".join(f"{x},{x / 2}" for x in inputs[:, 0].tolist()))
    np.testing.assert_allclose(lines.fit(table, steps=5).predict(inputs), found, atol=1e-5)
    with pytest.raises(ValueError, match="targets are no numbers: they are of type <U1"):
        lines.fit(inputs, ["a"] * 9)
    with pytest.raises(ValueError, match="have no classes"):
        model.predict_proba(inputs)


def test_images_are_read_as_the_family_reads_its_own(pictures: metarl.Trained, tmp_path: Path) -> None:
    folder = painted(tmp_path / "own")
    files = sorted(folder.rglob("*.png"))
    model = pictures.fit(folder)
    assert model.predict(files).tolist() == ["blue"] * 3 + ["red"] * 3
    assert model.score(folder) == 1.0
    assert pictures.fit(files, ["b"] * 3 + ["r"] * 3).predict(files[:1]).tolist() == ["b"]
    own = pictures.family.read(files)
    np.testing.assert_allclose(model.predict_proba(files), model.predict_proba((own * 255).round().byte()), rtol=1e-4)
    (tmp_path / "own" / "list.csv").write_text("filename,label\nred/0.png,r\nblue/0.png,b\n")
    assert pictures.fit(tmp_path / "own" / "list.csv").classes == ("b", "r")
    opened = metarl.load_model(model.save(tmp_path / "model"))
    assert opened.predict(files).tolist() == model.predict(files).tolist()


def test_wrong_inputs_get_a_line(pictures: metarl.Trained, metric: metarl.Trained, tmp_path: Path) -> None:
    images = torch.zeros(4, 3, 8, 8)
    two = ["a", "b", "a", "b"]
    (tmp_path / "empty").mkdir()
    cases = [
        (pictures, torch.zeros(4, 8, 8, 3), two, r"\(4, 8, 8, 3\) where \(item, 3, 8, 8\) .*channels to the front"),
        (pictures, torch.zeros(4, 1, 8, 8), two, r"\(4, 1, 8, 8\) where"),
        (pictures, images[0], two, "a single input needs the first axis"),
        (pictures, images + 100, two, "range from 100 to 100, where 0 to 1 was expected"),
        (pictures, images * torch.nan, two, "not finite, first in item 0"),
        (pictures, images, ["a"] * 4, "only the class 'a'"),
        (pictures, images, two[:3], "3 targets for 4 inputs"),
        (pictures, images, None, "targets are missing"),
        (pictures, images, [["a"]] * 4, "not hashable"),
        (pictures, images, [float("nan")] * 4, "a class is nan"),
        (pictures, [tmp_path / "none.png"], ["a"], "no file"),
        (pictures, tmp_path / "empty", None, "holds no examples"),
        (pictures, tmp_path / "nowhere", None, "expected a folder with a folder for each class"),
        (metric, ["cat.png"], ["a"], "reads no files such as cat.png"),
        (metric, [["x"] * 6], ["a"], "inputs are no numbers"),
    ]
    for trained, inputs, targets, told in cases:
        with pytest.raises(ValueError, match=told) as caught:
            trained.fit(inputs, targets)
        assert "\n" not in str(caught.value)


def test_a_run_of_policies_has_no_examples() -> None:
    from metarl_envs.navigation import PointNavigation

    family, algorithm = PointNavigation(), MAML(network=Network(hidden=(4,)))
    learner = algorithm.build(family.spec)
    trained = metarl.Trained(algorithm, family, learner, {}, torch.device("cpu"), 0)
    with pytest.raises(ValueError, match=r"trains policies.*use adapt_to"):
        trained.fit(torch.zeros(1, 2), ["a"])


def test_scikit_learn_searches_and_cross_validates(metric: metarl.Trained, gradient: metarl.Trained) -> None:
    from sklearn.model_selection import GridSearchCV, cross_val_score

    inputs, names = POINTS[:24].numpy(), np.array(FOUR[:24])
    model = metric.fit(inputs, names)
    scores = cross_val_score(model, inputs, names, cv=4)
    own = []
    for fold in range(4):
        rows = np.concatenate([np.arange(2 * fold, 2 * fold + 2) + 8 * label for label in range(3)])
        rest = np.setdiff1d(np.arange(24), rows)
        own.append(metric.fit(inputs[rest], names[rest]).score(inputs[rows], names[rows]))
    np.testing.assert_allclose(scores, own)
    search = GridSearchCV(gradient.fit(inputs, names), {"steps": [0, 20]}, cv=4).fit(inputs, names)
    assert search.best_params_ == {"steps": 20}
    with pytest.raises(ValueError, match="no parameter step: expected"):
        model.set_params(step=1)

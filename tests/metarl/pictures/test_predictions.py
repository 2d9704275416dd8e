"""Pictures of what was predicted: the right frames around the right pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from metarl.algorithms.protonet import ProtoNet
from metarl.evaluation import evaluate
from metarl.evaluation.predictions import has_pictures, predicted
from metarl.fewshot import NWayKShot
from metarl.pictures.predictions import RIGHT, WRONG, predictions

WAYS = 3


def family(channels: int = 1) -> NWayKShot:
    """Classes of flat pictures that differ in brightness, a little noise on each."""
    noise = torch.rand(180, channels, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30).repeat_interleave(6)
    return NWayKShot(
        labels.reshape(-1, 1, 1, 1) / 30 + 0.02 * noise, labels, ways=WAYS, shots=2, queries=4, test_queries=4
    )


def framed(path: Path) -> dict[str, int]:
    """Return the numbers of pixels in the colours of frames."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return {colour: int((abs(pixels - np.array(to_rgb(colour)) * 255).max(-1) < 8).sum()) for colour in (RIGHT, WRONG)}


@pytest.mark.parametrize("channels", [1, 3])
def test_frames_tell_right_from_wrong(tmp_path: Path, channels: int) -> None:
    support, query = np.full((2, 3, channels, 5, 5), 0.5), np.full((2, 6, channels, 5, 5), 0.5)
    classes, asked = np.tile(np.arange(3), (2, 1)), np.tile(np.arange(3).repeat(2), (2, 1))
    found = []
    for wrong in (0, 2, 12):
        told = asked.copy()
        told.flat[:wrong] = (told.flat[:wrong] + 1) % 3
        found.append(framed(predictions(support, classes, query, asked, told, tmp_path / f"{wrong}.png")))
    none, two, every = found
    assert none[WRONG] == every[RIGHT] == 0 and none[RIGHT] > 0
    assert two[RIGHT] == pytest.approx(none[RIGHT] * 10 / 12, rel=0.1) and two[WRONG] > 0.1 * every[WRONG]


def test_other_shapes_and_classes_that_a_task_has_not(tmp_path: Path) -> None:
    pictures, classes = np.zeros((1, 2, 1, 4, 4)), np.array([[0, 1]])
    predictions(pictures, classes, pictures, classes, np.array([[7, 1]]), tmp_path / "more.png", [["a_b", "$x"]])
    with pytest.raises(ValueError, match=r"expected images \[task, item, 1 or 3, height, width\], not shape \(1, 2, 4"):
        predictions(np.zeros((1, 2, 4, 4, 4)), classes, pictures, classes, classes, tmp_path / "two.png")


def test_what_is_shown_is_what_was_scored() -> None:
    learner = ProtoNet().build(family().spec)
    params = learner.init(torch.Generator().manual_seed(0))
    scored = evaluate(learner, params, family(), tasks=6, steps=1, seed=3)
    shown = predicted(learner, params, scored.tasks, 1, 3, "cpu")
    assert shown.support.inputs.shape == (4, 2 * WAYS, 1, 6, 6) and shown.classes.shape == (4, 4 * WAYS)
    right = (shown.classes == shown.query.targets).to(torch.get_default_dtype()).mean(1)
    torch.testing.assert_close(right, scored.scores["accuracy"][1][:4])
    assert torch.equal(shown.query.inputs, scored.queries[0].inputs[:4])


def test_only_pictures_are_drawn() -> None:
    assert has_pictures(ProtoNet().build(family().spec)) and has_pictures(ProtoNet().build(family(3).spec))
    vectors = NWayKShot(torch.rand(180, 6), torch.arange(30).repeat_interleave(6), ways=WAYS, queries=4, test_queries=4)
    assert not has_pictures(ProtoNet().build(vectors.spec))

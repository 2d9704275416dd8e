"""Programs that need no metarl: the same outputs in a process where metarl cannot be imported."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

import metarl
from metarl.algorithms import MAML
from metarl.algorithms.protonet import ProtoNet
from metarl.control import GymnasiumFamily
from metarl.fewshot import NWayKShot
from metarl.networks import Network
from metarl.trained import AdaptedPolicy, FewShotModel
from metarl.trained.deploy.card import Card
from metarl.trained.deploy.native import native
from metarl_plugins.images import Images

FRESH = """
import sys
sys.modules["metarl"] = None  # importing it fails
import numpy, torch
for program in sys.argv[1:]:
    rows = numpy.load(program + ".given.npy")
    if program.endswith(".pt2"):
        found = torch.export.load(program).module()(torch.from_numpy(rows)).numpy()
    else:
        import onnxruntime
        session = onnxruntime.InferenceSession(program)
        found = session.run(None, {session.get_inputs()[0].name: rows})[0]
    numpy.save(program + ".out.npy", found)
assert not any(name.startswith("metarl.") for name in sys.modules)
"""


def elsewhere(given: dict[Path, np.ndarray]) -> list[np.ndarray]:
    """Return what programs make of arrays, in a process of their own."""
    for program, rows in given.items():
        np.save(f"{program}.given.npy", rows)
    subprocess.run([sys.executable, "-I", "-c", FRESH, *map(str, given)], check=True, capture_output=True)
    return [np.load(f"{program}.out.npy") for program in given]


@pytest.fixture(scope="module")
def classifier() -> FewShotModel:
    family, algorithm = Images(size=12, ways=3), ProtoNet(network=Network(architecture="conv4", filters=4))
    learner = algorithm.build(family.spec)
    params = learner.init(torch.Generator().manual_seed(0))
    trained = metarl.Trained(algorithm, family, learner, params, torch.device("cpu"), 0)
    images = torch.randint(256, (6, 3, 12, 12), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return trained.fit(images, ["a", "b", "c"] * 2)


@pytest.fixture(scope="module")
def policy() -> AdaptedPolicy:
    family = GymnasiumFamily("Pendulum-v1", spaces.Dict(g=spaces.Box(5.0, 15.0)))
    algorithm = MAML(network=Network(hidden=(8,)))
    learner = algorithm.build(family.spec)
    params = learner.init(torch.Generator().manual_seed(0))
    own = native(spaces.Box(-8, 8, (3,)), spaces.Box(-2.0, 2.0, (1,)), learner.spec, 0.3)
    state = learner.begin(params, torch.zeros(1, 1))
    return AdaptedPolicy(algorithm, learner, params, torch.device("cpu"), own, Card("MAML", "Pendulum", 0), state)


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_programs_give_the_same_outputs_without_metarl(
    classifier: FewShotModel, policy: AdaptedPolicy, ending: str, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(256, size=(7, 3, 12, 12), dtype=np.uint8)
    seen = np.outer(np.linspace(0, 5, 9), [1, -1, 1]).astype(np.float32)
    names = tmp_path / f"classifier{ending}", tmp_path / f"policy{ending}"
    chances, actions = elsewhere({classifier.export(names[0]): images, policy.export(names[1]): seen})
    np.testing.assert_allclose(chances, classifier.predict_proba(images), atol=1e-4)
    told = json.loads((tmp_path / f"classifier{ending}.card.json").read_text())
    assert told["classes"] == ["a", "b", "c"]
    assert (told["input_shape"], told["input_dtype"]) == (["item", 3, 12, 12], "uint8")
    assert 0 < (np.abs(actions) == 2).sum() < 9  # some are clipped
    np.testing.assert_allclose(actions, policy.act(seen), atol=1e-4)


def test_the_scale_of_floats_is_inside(tmp_path: Path) -> None:
    inputs = 16 * torch.rand(40, 4, generator=torch.Generator().manual_seed(0))
    family, algorithm = (
        NWayKShot(inputs, torch.arange(40) // 4, ways=2, scale=16),
        ProtoNet(network=Network(hidden=(8,))),
    )
    learner = algorithm.build(family.spec)
    params = learner.init(torch.Generator().manual_seed(0))
    model = metarl.Trained(algorithm, family, learner, params, torch.device("cpu"), 0).fit(
        inputs[:8], [1] * 4 + [2] * 4
    )
    assert model.support is not None and model.support.inputs.max() <= 1
    program = torch.export.load(model.export(tmp_path / "program.pt2")).module()
    np.testing.assert_allclose(program(inputs).numpy(), model.predict_proba(inputs), atol=1e-5)


def test_other_files_are_refused(policy: AdaptedPolicy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a file that ends in \.pt2 or \.onnx"):
        policy.export(tmp_path / "policy.pth")
    assert not list(tmp_path.iterdir())


def test_onnx_is_an_extra(policy: AdaptedPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"pip install 'metarl-toolkit\[onnx\]'"):
        policy.export(tmp_path / "policy.onnx")

"""A single class cannot be told apart from anything: no learner fails, and all but three have nothing to learn."""

import pytest
import torch
from support import synthetic

from metarl import plugins
from metarl.types import Spec

SPEC = Spec((3,), 1, "classification")
MOVED = {
    "siamese": "it compares pairs, and learns that all are alike",
    "bmaml": "particles move by their prior and their repulsion",
    "reptile": "its meta-loss is a distance that rounding makes",
}


@pytest.mark.parametrize("name", [plugin.name for plugin in plugins.available("algorithms")])
def test_nothing_is_learned_from_a_single_class(name: str) -> None:
    learner = plugins.load("algorithms", name)().build(SPEC)
    params = {name: value.requires_grad_() for name, value in learner.init(torch.Generator().manual_seed(1)).items()}
    losses, _ = learner.meta_loss(params, synthetic.few_shot(SPEC))
    gradients = torch.autograd.grad(losses.sum(), list(params.values()), allow_unused=True)
    assert losses.isfinite().all()
    assert all(one is None or one.isfinite().all() for one in gradients)
    moves = losses.any() or any(one is not None and one.any() for one in gradients)
    assert bool(moves) == (name in MOVED)

"""Every installed control family with every installed algorithm that accepts it and every outer update."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

import metarl_envs  # noqa: F401  # registers the environments
from metarl import plugins
from metarl.evaluation.scores import evaluate
from metarl.outer import SGD
from metarl.seeding import stream
from metarl.training.settings import Settings
from metarl.training.start import train

ALGORITHMS = [plugin.name for plugin in plugins.available("algorithms") if plugin.package == "metarl-toolkit"]
FAMILIES = [plugin.name for plugin in plugins.available("tasks") if plugin.value.startswith("metarl_envs.")]


def small(name):
    family = plugins.load("tasks", name)()
    return replace(family, sampling=replace(family.sampling, episodes=2, horizon=4))


REFUSED = {
    ("reptile", "trpo"): "not differentiated",
    ("reptile", "promp"): "not differentiated",
    ("reptile", "adam"): "use sgd, or --algorithm.no-carry-moments",
    ("rl2", "promp"): "a policy with memory",
}


def accepts(algorithm, family):
    try:
        plugins.load("algorithms", algorithm)().build(family.spec)
    except ValueError:
        return False
    return True


CONTROL = [name for name in ALGORITHMS if accepts(name, small("bandit"))]


@pytest.mark.parametrize("outer", [plugin.name for plugin in plugins.available("outers")])
@pytest.mark.parametrize("algorithm", CONTROL)
@pytest.mark.parametrize("family", FAMILIES)
def test_trains_and_evaluates(family, algorithm, outer):
    def trained():
        settings = Settings(iterations=2, meta_batch_size=3)
        # SGD's default is Reptile's step, all the way; two episodes of a robot give a gradient that leads to infinity.
        update = SGD(learning_rate=1e-3) if outer == "sgd" else outer
        return train(plugins.load("algorithms", algorithm)(), small(family), update, settings)

    if (algorithm, outer) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[algorithm, outer]):
            trained()
        return
    result = trained()
    assert all(torch.isfinite(value).all() for value in result.params.values())
    assert all(np.isfinite(row[f"return/step_{result.learner.adaptations}"]) for row in result.rows)
    found = evaluate(result.learner, result.params, small(family), tasks=2, steps=2)
    assert found.scores["return"].shape == (3, 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_keep_their_contract(name):
    family = small(name)
    tasks = family.sample(6, "train", stream(0, "tasks"))
    again = family.sample(6, "train", stream(0, "tasks"))
    assert tasks.descriptors.shape == (6, family.spec.descriptor_size)
    assert torch.equal(tasks.descriptors, again.descriptors)
    assert set(tasks.parameters) == set(family.parameter_space)
    for key, value in tasks.parameters.items():
        assert value.shape == (6, *family.parameter_space[key].shape)
        for row in value:
            assert family.parameter_space[key].contains(row.numpy().astype(family.parameter_space[key].dtype))
    with pytest.raises(ValueError, match="task"):
        family.sample(0, "train", stream(0, "tasks"))


@pytest.mark.parametrize("name", FAMILIES)
def test_environments_are_registered(name):
    words = {"mdp": "MDP"}
    identity = "metarl/" + "".join(words.get(word, word.capitalize()) for word in name.split("-")) + "-v0"
    spec = plugins.load("tasks", name)().spec
    env = gymnasium.make(identity)
    lanes = gymnasium.make_vec(identity, num_envs=3, vectorization_mode="vector_entry_point")
    assert env.observation_space.shape == lanes.single_observation_space.shape
    assert sorted(env.observation_space.shape) == sorted(spec.input_shape)  # networks read pictures channels first
    assert lanes.reset(seed=0)[0].shape == (3, *env.observation_space.shape)
    env.close()
    lanes.close()

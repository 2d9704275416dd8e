"""A model of one's own examples, adapted from what a run has learned, with scikit-learn's habits."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor

from metarl import origins
from metarl.evaluation import adapt
from metarl.files import expanded
from metarl.seeding import stream
from metarl.speed import float32, usual_modes
from metarl.trained.deploy import exporting, labels, saved
from metarl.trained.deploy.card import Card
from metarl.trained.deploy.inputs import Preparing, as_files, examples_at, inputs_at, numbers_of
from metarl.types import Algorithm, Examples, Learner, Params, State, held_by, holding, outputs_at

ROWS = 256
"""Inputs that are predicted at once where they do not influence each other."""
MADE_OF = ("algorithm", "learner", "params", "device", "preparing", "card", "steps", "seed")
"""What a model is made of before it is fitted."""


@dataclass(eq=False)
class FewShotModel:
    """What a run has learned, adapted to one's own examples: ``fit``, ``predict``, ``predict_proba``, ``score``.

    ``metarl.Trained.fit`` makes it, and ``metarl.load_model`` reads it from a file. Inputs are arrays or tensors
    ``[item, *input_shape]``, or image files where the run's family reads any. Whole numbers of images are scaled as the
    family scales its own. With transductive batch norm, inputs that are predicted together influence each other.
    """

    algorithm: Algorithm = field(repr=False)
    learner: Learner = field(repr=False)
    params: Params = field(repr=False)
    device: torch.device
    preparing: Preparing = field(repr=False)
    card: Card = field(repr=False)
    """Where it comes from."""
    steps: int = 1
    """Adaptation steps of ``fit``."""
    seed: int = 0
    """Decides the order of the examples, which matters to learners with memory."""
    classes: tuple[Any, ...] = ()
    """The classes, in the order of ``predict_proba``; empty for values."""
    support: Examples | None = field(default=None, repr=False)
    """The examples ``[1, item, ...]`` that it was fitted to, as the learner reads them, on the CPU."""
    fitted: Learner | None = field(default=None, repr=False)
    state: State = field(default=None, repr=False)

    @property
    def classifies(self) -> bool:
        """Whether it tells classes apart, instead of predicting values."""
        return self.learner.spec.kind == "classification"

    @property
    def classes_(self) -> Any:
        """The classes as an array, as scikit-learn calls them. Raises ValueError for a model of values."""
        self._check_classifies()
        return labels.as_array(self.classes)

    def fit(self, inputs: Any, targets: Any = None) -> "FewShotModel":
        """Adapt to other examples instead, from what the run has learned; return this model.

        Raises:
            ValueError: inputs and targets that do not fit each other or the run; a single class; more classes than the
                learner can tell apart; or numbers that are not finite.
        """
        if targets is None:
            if not isinstance(inputs, str | Path):
                raise ValueError("the targets are missing: give a class or a value for each input")
            inputs, targets = examples_at(expanded(inputs), self.learner.spec)
        rows = self.preparing.tensor(inputs)
        classes, numbered = self._targets(targets, len(rows))
        standard = self.preparing.units.targets
        if not self.classifies and standard is not None:
            numbered = standard.apply(numbered)
        order = torch.randperm(len(rows), generator=stream(self.seed, "fit"))
        self.restore(Examples(inputs=rows[order][None], targets=numbered[order][None]), classes)
        return self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return what the model is made of, by name: scikit-learn's ``clone`` makes an unfitted one of it."""
        return {name: getattr(self, name) for name in MADE_OF}

    def set_params(self, **options: Any) -> "FewShotModel":
        """Set what the model is made of, such as ``steps``, for the next ``fit``; return this model.

        Raises ValueError for another name.
        """
        if unknown := options.keys() - set(MADE_OF):
            raise ValueError(f"there is no parameter {min(unknown)}: expected some of {', '.join(MADE_OF)}")
        for name, value in options.items():
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn whether it classifies."""
        from sklearn.utils import ClassifierTags, RegressorTags, Tags, TargetTags  # optional: who asks has it

        kind = "classifier" if self.classifies else "regressor"
        tags = Tags(estimator_type=kind, target_tags=TargetTags(required=True))
        tags.classifier_tags = ClassifierTags() if self.classifies else None
        tags.regressor_tags = None if self.classifies else RegressorTags()
        return tags

    def restore(self, support: Examples, classes: tuple[Any, ...]) -> None:
        """Adapt to prepared examples ``[1, item, ...]``; nothing changes where that fails."""
        fitted = _serving(self.algorithm, self.learner, self.params, len(classes)) if classes else self.learner
        state = adapt(fitted, self.params, support, self.steps, device=self.device)[-1].state
        self.fitted, self.state, self.support, self.classes = fitted, state, support, classes

    def _targets(self, targets: Any, count: int) -> tuple[tuple[Any, ...], Tensor]:
        if self.classifies:
            told = labels.as_list(targets)
            _check_count(len(told), count)
            classes = labels.classes_of(told)
            return classes, labels.numbered(told, classes)
        return (), self._values(targets, count)

    def _values(self, targets: Any, count: int) -> Tensor:
        size = self.learner.spec.output_size
        try:
            values = numbers_of(targets).to(torch.get_default_dtype())
        except ValueError as error:
            raise ValueError(f"targets are no numbers: {error}") from error
        if values.ndim == 1 and size == 1:
            values = values.unsqueeze(1)
        if values.ndim != 2 or values.shape[1] != size:
            raise ValueError(f"targets have shape {tuple(values.shape)} where (item, {size}) was expected")
        _check_count(len(values), count)
        if not values.isfinite().all():
            raise ValueError("targets contain numbers that are not finite")
        return values

    def predict(self, inputs: Any) -> Any:
        """Return the class of each input, ``(item,)``, or its values ``(item, output_size)``, as an array.

        Values of one number are ``(item,)``, as scikit-learn returns them. Raises ValueError as ``fit`` does.
        """
        outputs = self.outputs(self._prepared(inputs))
        if self.classifies:
            return labels.as_array(self._classes(outputs))
        values = self._in_own_units(outputs).numpy()
        return values[:, 0] if values.shape[1] == 1 else values

    def predict_proba(self, inputs: Any) -> Any:
        """Return the probability of each class, ``(item, class)``, in the order of ``classes``. Raises ValueError."""
        self._check_classifies()
        return self.outputs(self._prepared(inputs)).softmax(-1).numpy()

    def score(self, inputs: Any, targets: Any = None) -> float:
        """Return the share of right classes, or the coefficient of determination R^2 of values, as scikit-learn does.

        Raises ValueError as ``fit`` does; for R^2, also for targets that are all the same.
        """
        if targets is None and isinstance(inputs, str | Path):
            inputs, targets = examples_at(expanded(inputs), self.learner.spec)
        rows = self._prepared(inputs)
        if self.classifies:
            told = labels.as_list(targets)
            _check_count(len(told), len(rows))
            found = self._classes(self.outputs(rows))
            return float(np.mean([one == other for one, other in zip(found, told, strict=True)]))
        values = self._values(targets, len(rows))
        spread = (values - values.mean(0)).square().sum(0)
        if not (spread > 0).all():
            raise ValueError("all targets are the same: R^2 needs some that differ")
        missed = (values - self._in_own_units(self.outputs(rows))).square().sum(0)
        return float((1 - missed / spread).mean())

    def _in_own_units(self, outputs: Tensor) -> Tensor:
        """Return values ``[item, output_size]`` in the units of the targets that were given."""
        standard = self.preparing.units.targets
        return outputs if standard is None else standard.undo(outputs)

    def _classes(self, outputs: Tensor) -> list[Any]:
        return [self.classes[place] for place in outputs.argmax(-1).tolist()]

    @usual_modes()
    def outputs(self, rows: Tensor) -> Tensor:
        """Return the logits ``[item, class]`` or values of prepared inputs ``[item, *input_shape]``, on the CPU."""
        if self.fitted is None:
            raise ValueError("this model has not been fitted: call fit first")
        together = self.learner.batch_norm == "transductive"
        found = []
        with torch.no_grad(), float32(self.device):
            for part in [rows] if together else torch.split(rows, ROWS):
                found.append(outputs_at(self.fitted, self.state, part.to(self.device)).cpu())
        outputs = torch.cat(found)
        return outputs[:, : len(self.classes)] if self.classifies else outputs

    def save(self, path: Path | str) -> Path:
        """Write the model into a file that ``metarl.load_model`` reads, data only, and its card beside it.

        Raises:
            ValueError: it was not fitted; its classes are no text, numbers or tuples of them; or the algorithm cannot
                be recorded, such as one of a notebook.
        """
        if self.support is None:
            raise ValueError("this model has not been fitted: call fit first")
        scale = self.preparing.scale
        contents = {
            "kind": saved.FEW_SHOT,
            "steps": self.steps,
            "seed": self.seed,
            "classes": [labels.written(one) for one in self.classes],
            "scale": None if scale is None else [scale.divisor, scale.floats],
            "reader": saved.reader(self.preparing.family),
            origins.UNITS: origins.plain_units(self.preparing.units),
        }
        shown = {"classes": list(map(str, self.classes))} if self.classifies else {}
        told = saved.Told(self.algorithm, self.learner.spec, self._scored_card(), contents, shown)
        tensors = {"inputs": self.support.inputs, "targets": self.support.targets}
        outputs = self.outputs(self.support.inputs[0])
        return saved.save(path, told, {**self.params}, held_by(self.learner), tensors, outputs)

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        """Pickle by value: a learner's functions are closures."""
        return _again, (cloudpickle.dumps(vars(self)),)

    def export(self, path: Path | str) -> Path:
        """Write a program that needs no metarl: of ``torch.export`` (.pt2) or ONNX (.onnx), and the card beside it.

        It takes inputs ``[item, *input_shape]``: whole numbers (uint8) where the family's own are images, which it
        scales itself, else floats. It returns probabilities ``[item, class]`` or values ``[item, output_size]``, and
        was compared with this model before it was written. The number of items is free.

        Raises:
            ValueError: another type of file, ONNX is not installed, or the learner cannot be exported.
        """
        if self.support is None:
            raise ValueError("this model has not been fitted: call fit first")
        scale = self.preparing.scale
        divisor = 1.0 if scale is None else scale.divisor
        rows = self.support.inputs[0]
        assert self.fitted is not None
        units = self.preparing.units
        program = exporting.Predictor(self.fitted, self.state, divisor, len(self.classes), units)
        given = (rows if units.inputs is None else units.inputs.undo(rows)) * divisor
        if scale is not None and divisor != 1 and not scale.floats:
            given = given.round().clamp(0, 255).to(torch.uint8)
        told = {"output": "probabilities" if self.classifies else "values", "classes": list(map(str, self.classes))}
        return exporting.export(program, given, path, self._scored_card(), told)

    def _scored_card(self) -> Card:
        """Return the card with the score on the examples that the model was fitted to."""
        assert self.support is not None
        inputs, targets = self.support.inputs[0], self.support.targets[0]
        outputs = self.outputs(inputs)
        if self.classifies:
            name, score = "accuracy/support", (outputs.argmax(-1) == targets).double().mean()
        else:
            missed = self._in_own_units(outputs) - self._in_own_units(targets)
            name, score = "mean squared error/support", missed.square().mean().double()
        return replace(self.card, scores={"examples": len(inputs), name: float(score)})

    def _prepared(self, inputs: Any) -> Tensor:
        files = as_files(inputs)
        if files is not None and len(files) == 1 and files[0].suffix.lower() == ".csv":
            return self.preparing.tensor(inputs_at(files[0], self.learner.spec))
        return self.preparing.tensor(inputs)

    def _check_classifies(self) -> None:
        if not self.classifies:
            raise ValueError("this model predicts values, which have no classes and no probabilities: use predict")


def _check_count(targets: int, inputs: int) -> None:
    if targets != inputs:
        raise ValueError(f"there are {targets} targets for {inputs} inputs: expected one for each")


def _serving(algorithm: Algorithm, learner: Learner, params: Params, ways: int) -> Learner:
    """Return the learner for a number of classes. Raises ValueError where its network cannot tell so many apart."""
    spec = learner.spec
    if ways == spec.output_size:
        return learner
    try:
        other = algorithm.build(replace(spec, output_size=ways))
        same = _shapes(other.init(stream(0, "shapes"))) == _shapes(params)
    except ValueError:
        same = False
    if same:
        return holding(other, held_by(learner) or None)
    if ways > spec.output_size:
        raise ValueError(
            f"the examples are of {ways} classes, and this run's {type(algorithm).__name__} tells at most "
            f"{spec.output_size} apart: train it with more ways, or use a learner whose network does not depend on "
            "their number, such as protonet"
        )
    return learner


def _shapes(params: Params) -> dict[str, Sequence[int]]:
    return {name: tuple(value.shape) for name, value in params.items()}


def _again(pickled: bytes) -> FewShotModel:
    return FewShotModel(**cloudpickle.loads(pickled))

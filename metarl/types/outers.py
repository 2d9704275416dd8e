"""How the meta-parameters move: outer updates, and what an algorithm or an outer update may say about them."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from metarl.types.batches import Experience, Params
from metarl.types.learners import Learner


class Update(NamedTuple):
    """What an outer update returns."""

    params: Params
    state: dict[str, Any]
    """The optimiser's own state: tensors, numbers and None only, by name, so that it can be checkpointed."""
    metrics: Mapping[str, Tensor | float]
    """Scalars. Tensors stay on their device until they are logged."""
    finite: bool = True
    """False when the meta-gradient was not finite and the step was refused."""


@runtime_checkable
class Outer(Protocol):
    """A frozen dataclass of hyper-parameters: how the meta-parameters move; entry-point group ``metarl.outers``.

    It may have two more members: the method of ``Selective``, and the field of ``Chunked``.
    """

    def init(self, params: Params) -> dict[str, Any]:
        """Return the optimiser's state before the first update."""

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Update:
        """Return the moved parameters, a function of what it is given; nothing of that is written to.

        Raises ValueError for data that do not fit its options.
        """


@runtime_checkable
class Selective(Protocol):
    """An outer update that does not serve every learner."""

    def check(self, learner: Learner) -> None:
        """Raise ValueError for a learner that it cannot serve: this is asked before training."""


@runtime_checkable
class Chunked(Protocol):
    """An outer update that can work through the tasks in groups, one after another, to need less memory."""

    @property
    def chunks(self) -> int | None:
        """How many groups there are, at most as many as tasks; None: as the outer update sees fit.

        The step does not depend on it, but for rounding.
        """


@runtime_checkable
class PrefersOuter(Protocol):
    """An algorithm that states its own outer update."""

    def default_outer(self) -> Outer | None:
        """Return the outer update to use where none is chosen; it may depend on the algorithm's options.

        None: the usual one, TRPO for control and Adam for examples.
        """


NOT_DIFFERENTIATED = "this algorithm's adaptation is not differentiated, as trpo and promp would; use sgd or adam"

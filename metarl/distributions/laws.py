"""What the file of a distribution must hold. Nothing here imports torch, but for type checkers."""

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from torch.distributions import Distribution as TorchDistribution

Actions = Literal["continuous", "discrete"]
Bounds = tuple[float, float]


class Sizes(Protocol):
    """What is known of the actions."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of dimensions, of choices, or of choices of each of several."""

    @property
    def bounds(self) -> Bounds:
        """The ends of continuous actions, the same in every dimension."""


class Law(Protocol):
    """The functions of a distribution's file. Outputs are ``[..., width]``, actions ``[...]`` or ``[..., number]``.

    They are pure, differentiable where that makes sense, ask nothing of the values of tensors, and work with any
    leading axes.
    """

    ACTIONS: Actions
    """Which actions are distributed so."""
    BOUNDED: bool
    """Whether continuous actions keep within ``bounds``."""

    def head(self, of: Sizes) -> int:
        """Return how many outputs depend on the observation: the width of a network's last layer."""

    def log_stds(self, of: Sizes) -> int:
        """Return how many log standard deviations follow them, learned and the same in every state; 0 or ``head``."""

    def action_shape(self, of: Sizes) -> tuple[int, ...]:
        """Return the shape of one action."""

    def fill_noise(self, values: "Tensor", generator: "Generator") -> "Tensor":
        """Write the noise that turns outputs into actions into ``values`` ``[..., sum of sizes]``, and return it."""

    def act(self, of: Sizes, outputs: "Tensor", noise: "Tensor") -> "Tensor":
        """Return the actions that follow from outputs and noise."""

    def mode(self, of: Sizes, outputs: "Tensor") -> "Tensor":
        """Return the actions of a policy that does not explore."""

    def always(self, of: Sizes, actions: "Tensor") -> "Tensor":
        """Return the outputs of a policy that always takes these actions, in the dtype of ``encode``'s numbers."""

    def log_prob(self, of: Sizes, outputs: "Tensor", actions: "Tensor") -> "Tensor":
        """Return the logarithm of the probability, or of its density, ``[...]``."""

    def drawn_log_prob(self, of: Sizes, outputs: "Tensor", actions: "Tensor") -> "Tensor":
        """Return ``log_prob`` of drawn actions, and 0 where the outputs are those of ``always``."""

    def kl(self, of: Sizes, old: "Tensor", new: "Tensor") -> "Tensor":
        """Return KL(old || new), ``[...]``, in nats."""

    def fisher_product(self, of: Sizes, outputs: "Tensor", tangents: "Tensor") -> "Tensor":
        """Multiply tangents ``[..., width]`` by the Hessian of ``kl(outputs.detach(), outputs)`` in the outputs."""

    def encode(self, of: Sizes, actions: "Tensor", dtype: Any) -> "Tensor":
        """Return actions as numbers that a network reads, ``[..., sum of sizes]``."""

    def as_torch(self, of: Sizes, outputs: "Tensor") -> "TorchDistribution":
        """Return the same distribution as one of PyTorch's. Raises ValueError for outputs that are not finite."""


_LAWS: dict[str, Law] = {}


def law(name: str) -> Law:
    """Return the file of a distribution: one of this package, or 'package.module' of any other.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in _LAWS:
        place = name if "." in name else f"{__package__}.{name}"
        if "." not in name and name not in names():
            raise ValueError(f"there is no distribution {name!r}: expected {', '.join(names())} or 'package.module'")
        try:
            found: Any = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ValueError(f"the distribution {name!r} cannot be imported: {error}") from error
        wanted = sorted(name for name in {*dir(Law), *Law.__annotations__} if not name.startswith("_"))
        if missing := [part for part in wanted if not hasattr(found, part)]:
            raise ValueError(f"the module {name} is no distribution: it has no {', '.join(missing)}")
        _LAWS[name] = found
    return _LAWS[name]


def names() -> list[str]:
    """Return the names of the distributions in this package."""
    own = {Path(__file__).stem, "distribution"}
    return sorted(one.name for one in pkgutil.iter_modules([str(Path(__file__).parent)]) if one.name not in own)

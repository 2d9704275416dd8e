"""Which distribution of actions the outputs of a policy mean. Imports no torch before it computes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metarl.distributions.laws import Actions, Bounds, Law, law

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from torch.distributions import Distribution as TorchDistribution


@dataclass(frozen=True)
class Distribution:
    """A distribution of actions: a name, and what its file must know of the actions.

    Outputs are ``[..., width]``. Actions are ``[..., *action_shape]``, integers where ``actions`` is "discrete".
    """

    name: str
    """The file in ``metarl.distributions`` that computes it, or 'package.module' of another one."""
    sizes: tuple[int, ...]
    """The number of dimensions, of choices, or of choices of each of several."""
    bounds: Bounds = (-1.0, 1.0)
    """The ends of continuous actions, the same in every dimension, for distributions that keep within them."""

    @property
    def _law(self) -> Law:
        return law(self.name)

    @property
    def actions(self) -> Actions:
        """Whether actions are "continuous" or "discrete". Raises ValueError for an unknown name."""
        return self._law.ACTIONS

    @property
    def bounded(self) -> bool:
        """Whether continuous actions keep within ``bounds``."""
        return self._law.BOUNDED

    @property
    def numbers(self) -> int:
        """How many numbers of noise make one action, and how many ``encode`` gives."""
        return sum(self.sizes)

    @property
    def head(self) -> int:
        """How many outputs depend on the observation: the width of a network's last layer."""
        return self._law.head(self)

    @property
    def log_stds(self) -> int:
        """How many log standard deviations follow them, learned and the same in every state."""
        return self._law.log_stds(self)

    @property
    def width(self) -> int:
        """How many outputs a policy has."""
        return self.head + self.log_stds

    @property
    def action_shape(self) -> tuple[int, ...]:
        """The shape of one action."""
        return self._law.action_shape(self)

    def sample(self, outputs: "Tensor", generator: "Generator") -> "Tensor":
        """Draw an action from each distribution."""
        return self.act(outputs, self.fill_noise(outputs.new_empty(*outputs.shape[:-1], self.numbers), generator))

    def fill_noise(self, values: "Tensor", generator: "Generator") -> "Tensor":
        """Write the noise that turns outputs into actions into ``values`` ``[..., numbers]``, and return it."""
        return self._law.fill_noise(values, generator)

    def act(self, outputs: "Tensor", noise: "Tensor") -> "Tensor":
        """Return the actions that follow from outputs and noise ``[..., numbers]``."""
        return self._law.act(self, outputs, noise)

    def mode(self, outputs: "Tensor") -> "Tensor":
        """Return the action of a policy that does not explore: the most likely one, or as the distribution says."""
        return self._law.mode(self, outputs)

    def always(self, actions: "Tensor") -> "Tensor":
        """Return the outputs of a policy that always takes these actions."""
        return self._law.always(self, actions)

    def certain(self, outputs: "Tensor") -> "Tensor":
        """Return the outputs of a policy that always takes the ``mode`` of ``outputs``."""
        return self.always(self.mode(outputs)).to(outputs.dtype)

    def log_prob(self, outputs: "Tensor", actions: "Tensor") -> "Tensor":
        """Return the log-probability (or log-density) of whole actions, ``[...]``."""
        return self._law.log_prob(self, outputs, actions)

    def drawn_log_prob(self, outputs: "Tensor", actions: "Tensor") -> "Tensor":
        """Return ``log_prob`` of actions drawn from these outputs; 0 where the outputs are ``certain``."""
        return self._law.drawn_log_prob(self, outputs, actions)

    def kl(self, old: "Tensor", new: "Tensor") -> "Tensor":
        """Return KL(old || new), ``[...]``, in nats."""
        return self._law.kl(self, old, new)

    def fisher_product(self, outputs: "Tensor", tangents: "Tensor") -> "Tensor":
        """Multiply tangents of the outputs by the Fisher matrix: the Hessian of ``kl(outputs.detach(), outputs)``."""
        return self._law.fisher_product(self, outputs, tangents)

    def encode(self, actions: "Tensor", dtype: Any) -> "Tensor":
        """Return actions as numbers that a network reads, ``[..., numbers]``; choices are one-hot."""
        return self._law.encode(self, actions, dtype)

    def as_torch(self, outputs: "Tensor") -> "TorchDistribution":
        """Return the same distribution as one of PyTorch's. Raises ValueError for outputs that are not finite."""
        return self._law.as_torch(self, outputs)

"""Distributions of actions, one file each: what the outputs of a policy mean.

``Distribution`` says which one by its name and its sizes, and imports no torch before it computes: worker processes
read a ``Spec``, which holds one. The file of that name computes it, with the functions that ``laws.Law`` lists. To add
a distribution, write such a file, here or in a package of your own; nothing else knows the names.
"""

from metarl.distributions.distribution import Distribution

__all__ = ["Distribution"]

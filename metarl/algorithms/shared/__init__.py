"""Code that several algorithms share: gradient steps, metric learners, networks with memory.

It is internal. To write your own algorithm, use ``metarl.networks`` and ``metarl.objectives``.
"""

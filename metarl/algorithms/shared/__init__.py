"""What several algorithms share, and nobody else needs: gradient steps, metric learners, networks with memory.

What third parties need to write an algorithm of their own is in ``metarl.networks`` and ``metarl.objectives``.
"""

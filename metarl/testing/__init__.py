"""The contracts of plugins as named checks: of task families, of their environments, and of algorithms.

A check is a generator that is given what it is about and yields what it found wrong; ``metarl.testing`` runs them.
"""

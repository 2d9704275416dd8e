"""Episodes that an evaluation has played, in the environments' own units, as files for others.

Start reading in ``episodes``, which turns an evaluation into episodes. ``archive`` writes and reads them as an ``.npz``
file, ``datasets`` as a data set of Minari. ``places`` tells which of the two a name means.
"""

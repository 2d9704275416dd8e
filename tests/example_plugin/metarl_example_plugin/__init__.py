"""A task family and an algorithm for metarl, from a package of its own."""

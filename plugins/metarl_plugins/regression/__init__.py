"""Families of regression beyond waves: a table in a file, and samples of Gaussian processes."""

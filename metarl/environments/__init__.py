"""Environments in batches."""

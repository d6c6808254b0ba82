"""Runs: a dataset embedded file to file over a client."""

"""Compose and run the service: one process on one data folder."""

from embatch.server.start import ServeOptions, serve

__all__ = ["ServeOptions", "serve"]

"""Compose and run the service: one process on one data folder."""

from embatch.server.compose import ServeOptions, serve

__all__ = ["ServeOptions", "serve"]

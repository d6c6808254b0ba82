"""The pool on this machine: engines in supervised child processes of the service, in two lanes."""

from embatch.pool.local.pool import LocalPool

__all__ = ["LocalPool"]

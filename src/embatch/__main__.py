"""`python -m embatch` is the command line."""

from embatch.cli import main

main()

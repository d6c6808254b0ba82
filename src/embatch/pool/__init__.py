"""Where engines run: `protocol` says what a pool is to those above, `local` is the one of this machine."""

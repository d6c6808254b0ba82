"""Where batches can run: a file for each, behind one protocol."""

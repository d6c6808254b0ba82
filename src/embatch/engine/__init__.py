"""Engines: texts in, float32 vectors out."""

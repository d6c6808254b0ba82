"""Vertex AI, now the Gemini Enterprise Agent Platform, and the storage that its batches go through."""

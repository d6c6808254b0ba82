"""Asynchronous batch embeddings: submit texts, come back for the vectors."""

"""The client: pure flows, driven by a sync and an async shell."""

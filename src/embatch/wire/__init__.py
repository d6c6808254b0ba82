"""The protocols as they stand on the wire: the only place that knows their spellings."""

"""User-defined optimizer classes: the API that they use, and the tracing of their hooks."""

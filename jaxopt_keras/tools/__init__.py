"""Development tools: type stubs."""

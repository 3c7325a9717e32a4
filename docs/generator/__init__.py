"""Generators of pages and of type stubs from the rules and docstrings of the library."""

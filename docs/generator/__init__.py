"""Generators of pages from the rules and docstrings of the library."""

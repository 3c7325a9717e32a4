"""Optimizer classes of a user's own: the methods that they find, and how their hooks are traced."""

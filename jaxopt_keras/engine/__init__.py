"""How a rule runs over a tree. Nothing here knows an optimizer by name."""

"""Stages over whole trees, blind to the rule. Each works on lists of arrays, None where there is no gradient."""

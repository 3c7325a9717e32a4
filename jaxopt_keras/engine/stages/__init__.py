"""Stages over all arrays around the rule: clip, accumulate, average, guard."""

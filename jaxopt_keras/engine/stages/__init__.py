"""Stages of the pipeline around the rule, over all arrays: clip, accumulate, average, guard."""

"""Example programs: `python -m examples.NAME`. Start with `custom_loop`, or with `make demo`."""

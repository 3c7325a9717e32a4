"""Programs to read and to run: `python -m examples.NAME`. Begin with `custom_loop`, or with `make demo`."""

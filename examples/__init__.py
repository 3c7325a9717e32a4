"""Example programs: `python -m examples.NAME`. Start with `custom_loop`, or with `make demo`."""

from command import end_in_one_line

end_in_one_line()

"""What makes pages of the library itself: its rules and docstrings."""

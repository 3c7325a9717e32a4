"""Programs as users of six libraries would write them, from the pages of the site alone; each returns what it learned.

`test_arrivals.py` compares the results with those of the library that the user comes from.
"""

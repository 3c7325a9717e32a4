"""Storage of slots and parameters between steps: slots in few bits, and small updates to 16-bit parameters.

Rules do not depend on it: the pipeline dequantizes slots before the rule and quantizes them after it. The format of a
slot is chosen once, when the slot is created (`formats.choose_format`); a stored slot then carries its own format.
"""

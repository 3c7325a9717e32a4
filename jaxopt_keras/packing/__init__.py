"""Packing of many small arrays into one buffer for each dtype."""

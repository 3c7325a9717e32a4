"""Many small arrays as one buffer for each dtype."""

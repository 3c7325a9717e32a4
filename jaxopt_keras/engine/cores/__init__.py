"""What the pipeline runs: a rule over leaves, a transformation of optax's, stacks of matrices."""

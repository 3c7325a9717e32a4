"""The cores of the pipeline: a rule over leaves, an optax transformation, stacks of matrices."""

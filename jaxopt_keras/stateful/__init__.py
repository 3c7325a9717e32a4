"""The stateful face: variables and Keras-style optimizers."""

"""Collections of optimizers that people have written: each class is run with its own Keras and with this library."""

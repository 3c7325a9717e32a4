"""Float64 NumPy references of optimizers that are given the loss function, each with functions of its own."""

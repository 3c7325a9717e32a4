"""The pure face: kernels, groups, loss scaling, sharding."""

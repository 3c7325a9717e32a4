"""Benchmarks: what a step of each optimizer costs, beside its peers and beside what the machine can do at all."""

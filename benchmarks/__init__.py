"""Benchmarks. Each checks that the implementations agree before it times them."""

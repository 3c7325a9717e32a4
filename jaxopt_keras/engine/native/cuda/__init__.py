"""The backend for NVIDIA's GPUs: all loops of a phase as one kernel, in CUDA C++."""

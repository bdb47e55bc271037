"""Kernels of our own in C++, for bfloat16 on CPUs with AVX-512 BF16."""

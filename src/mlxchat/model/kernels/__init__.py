"""Kernels of our own for GPUs, each beside the plain formula that it computes.

A kernel is written once, for CUDA and Metal. It is used only where `mlxchat.autotune` has found on
the very machine that its numbers are those of the formula and that it is faster.
"""

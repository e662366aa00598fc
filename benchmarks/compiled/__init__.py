"""Optimizer steps compiled for machines that are not there, and what that shows.

The compilers of TPUs and of CUDA run ahead of time on any machine. Their programs tell
what a step moves through memory, keeps besides, launches and exchanges; not how long
it takes.
"""

"""Benchmarks: each file has a ``main(argv)`` and prints what it measured."""

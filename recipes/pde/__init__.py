"""Equations to solve: each file is one problem, with its reference, and runs by itself."""

"""Recipes of sponge robustness that compare several fits."""

"""Recipes: YAML files for ``effnn run``, by topic, and the benchmarks."""

"""The ``effnn`` command: find, copy and run recipes, list accelerators, profile a model."""

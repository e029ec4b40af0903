"""What is raised for a file that cannot be used."""

from __future__ import annotations


class ArtifactError(ValueError):
    """A compressed file is damaged, truncated, not one, or does not fit the model; the message says which."""

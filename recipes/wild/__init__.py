"""Other people's projects, unchanged, with the callbacks of this package."""

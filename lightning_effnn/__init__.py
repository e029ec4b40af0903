"""What a network costs on a chip, each epoch, and callbacks that make it cheaper and sturdier."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lightning_effnn")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

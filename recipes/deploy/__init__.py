"""Networks as files that runtimes execute in integers, measured."""

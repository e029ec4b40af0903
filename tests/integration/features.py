"""How features are put into the matrix."""


class Features(dict):
    """Functions of a case and a folder, by the name of the feature."""

    def put(self, name):
        """Put in a feature; what its cells assert is the function's docstring."""

        def added(function):
            self[name] = function
            return function

        return added

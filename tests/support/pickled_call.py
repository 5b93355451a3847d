"""A pickle that calls a function, as hostile checkpoints do."""


class PickledCall:
    """Object that pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call

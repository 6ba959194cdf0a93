"""What can go wrong, by kind. Every message says what was got, what was expected, and the cure."""

__all__ = [
    "InsufficientMemory",
    "InvalidData",
    "InvalidOption",
    "JacanaError",
    "LongWork",
    "NotConverged",
    "NotPositiveDefinite",
    "UnsupportedNetwork",
]


class JacanaError(Exception):
    """The base of every error that Jacana raises on purpose.

    Example:
        >>> import jacana, torch
        >>> try:
        ...     jacana.linearize(torch.nn.Linear(2, 1), parameters="wieght")
        ... except jacana.errors.JacanaError as error:
        ...     print(error)  # doctest: +NORMALIZE_WHITESPACE
        parameters: 'wieght' names no parameter or layer of the network. Did you mean 'weight'?
        Layers and parameters are: weight, bias.
    """


class InvalidData(JacanaError, ValueError):
    """Inputs, targets or vectors that cannot be used: wrong shape or dtype, not finite, empty."""


class InvalidOption(JacanaError, ValueError):
    """A setting that has no meaning: an unknown parameter name, a negative scale, an unknown method."""


class UnsupportedNetwork(JacanaError, ValueError):
    """A network that has no Jacobian example by example: random, mixing its examples, or failing on the data."""


class NotPositiveDefinite(JacanaError, ArithmeticError):
    """A covariance that a Cholesky factorisation cannot take, in float64."""


class InsufficientMemory(JacanaError, MemoryError):
    """A computation whose size is known beforehand not to fit."""


class NotConverged(UserWarning):
    """An iterative method stopped before it reached its tolerance; what it reached is said, and the cure."""


class LongWork(UserWarning):
    """What was asked for is estimated, by counted operations, to take more than an hour; the cure is said."""

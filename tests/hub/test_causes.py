"""An error and its causes, each once."""

from itertools import islice

from convstem.hub.failures import causes


def test_a_circle_of_errors_ends() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__context__ = second, first
    assert list(islice(causes(first), 5)) == [first, second]
    assert list(causes(None)) == []

"""A way to force one of several computations of the same result, for tests and measurements."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager


class Switch:
    """What is chosen by shape and device, and can be forced.

    Args:
        kind: what the names are, for messages.
        names: of the ways to compute.

    Attributes:
        forced: the name that stands now, or None: choose.
    """

    def __init__(self, kind: str, names: Collection):
        self.kind, self.names = kind, names
        self.forced = None

    @contextmanager
    def use(self, name) -> Iterator[None]:
        """Force ``name`` within the context.

        Raises:
            ValueError: there is none of that name.
        """
        if name not in self.names:
            raise ValueError(f"{self.kind} {name!r} does not exist; choose one of {', '.join(self.names)}")
        before, self.forced = self.forced, name
        try:
            yield
        finally:
            self.forced = before

"""Which versions of LMCache this was tested with: its interfaces change with every line."""

__all__ = ["LINES", "line"]

LINES = ("0.5",)


def line(version: str) -> str:
    """Returns the line of a version: what is before its second dot."""
    return ".".join(version.split(".")[:2])

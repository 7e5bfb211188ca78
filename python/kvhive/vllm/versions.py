"""Which versions of vLLM this was tested with: its interfaces for connectors and tiers change with every line."""

__all__ = ["LINES", "line", "refusal"]

LINES = ("0.32",)


def line(version: str) -> str:
    """Returns the line of a version: what is before its second dot."""
    return ".".join(version.split(".")[:2])


def refusal(version: str) -> str | None:
    """Says why a version is refused; nothing where it is not. `kvhive doctor` asks this too, without importing the package."""
    if line(version) in LINES:
        return None
    return f"kvhive.vllm works with vLLM {', '.join(LINES)}; this is {version}"

"""Which versions of SGLang this was tested with: what its pools and its storage are changes from one to the next."""

__all__ = ["VERSIONS", "refusal"]

VERSIONS = ("0.5.23",)


def refusal(version: str) -> str | None:
    """Says why a version is refused; nothing where it is not. `kvhive doctor` asks this too, without importing the package."""
    if version in VERSIONS:
        return None
    return f"kvhive.sglang works with SGLang {', '.join(VERSIONS)}; this is {version}"

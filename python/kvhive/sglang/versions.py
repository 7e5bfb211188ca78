"""Which versions of SGLang this was tested with: what its pools and its storage are changes from one to the next."""

__all__ = ["VERSIONS"]

VERSIONS = ("0.5.23",)

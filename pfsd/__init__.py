"""pfsd: a parallel file storage daemon driven by lines of text over a socket."""

__version__ = "0.1.0"

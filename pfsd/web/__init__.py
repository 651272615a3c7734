"""The daemon seen from a browser, Prometheus, or a supervisor: a small read-only HTTP listener, off by default."""

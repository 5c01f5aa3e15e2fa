"""Tests in a browser. A package, so that the browser ends with the last of them: its event loop is in others' way."""

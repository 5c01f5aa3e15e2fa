"""The compiled loops: Cython and C. Each has a slow twin in Python that tests/engine compares it with."""

"""Programs that measure: what the numbers in docs/ come from. How to run and read them is in README.md here."""

"""The process that looks after one instance: its verbs, saves, restores and its end."""

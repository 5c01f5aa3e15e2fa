"""The relay that holds a program's connections across a save, and the ZMTP it has to know."""

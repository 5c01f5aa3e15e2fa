"""What would keep a program from being saved, and the result of one check."""

"""What would keep a program from being saved, and the verdict of one check."""

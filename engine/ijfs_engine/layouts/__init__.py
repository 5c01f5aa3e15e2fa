"""One module per way of writing a process's memory to files; each finds page layouts in a set of images."""

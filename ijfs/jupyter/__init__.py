"""Jupyter's side: kernel specs, the kernel provisioner, cells run from the command line. Imports nothing by itself."""

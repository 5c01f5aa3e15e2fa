"""GPU programs: the CUDA processes of a tree are suspended before CRIU's dump and resumed after it.

CRIU cannot see device memory. The CUDA driver can move it into the host memory of its process and let go of
the device (`cuCheckpointProcess*`, driver 570 and newer); what is left is an ordinary process. `checkpoint` has
the order of the steps and their undoing, `driver` the seam to the real driver, `preflight` what is refused before
anything is touched, `environment` what a GPU program is started with. Called by `ijfs.live`'s save and restore.
"""

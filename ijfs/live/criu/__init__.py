"""CRIU: its command line, its image files, its logs and its hooks.

`command.py` runs it. A dump comes in by `image_stream.py`, stands still at `action_script.py`; a restore reads what
`stage_images.py` puts there. `image_format.py` parses its files, `log.py` explains its errors.
"""

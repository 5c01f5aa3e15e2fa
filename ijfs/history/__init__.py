"""What a repository's snapshots are to each other: how they follow one another, and what differs between two.

`snapshots.py` reads them with their names, `scene.py` puts them beside what is live, for the pictures; `comparison.py`
says what differs, and `processes.py` whose memory is where. For the command line, the SDK and the panel in JupyterLab.
"""

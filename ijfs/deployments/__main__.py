"""`python -m ijfs.deployments REPO`: the supervisor of a repository's deployments."""

from __future__ import annotations

import sys

from ijfs.deployments.supervisor import main

sys.exit(main(sys.argv[1:]))

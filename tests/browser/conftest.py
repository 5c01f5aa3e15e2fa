"""One JupyterLab and one browser for all tests here; what each test opened is closed after it.

The browser is the distribution's chromium, driven by playwright: both come with `tools/setup-browser`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live.live_env import why_not

sys.path.insert(0, str(Path(__file__).parents[1] / "jupyter"))
sys.path.insert(0, str(Path(__file__).parent))

from jupyter_env import JupyterEnv
from jupyter_http import JupyterServer
from lab import Lab, chromium

EXPOSED = ("--LabApp.expose_app_in_browser=True", "--JupyterNotebookApp.expose_app_in_browser=True")
"""A test may run commands by their names."""


def why_no_browser() -> str | None:
    """Why these tests cannot run here; None when they can."""
    if shutil.which("chromium") is None:
        return "needs chromium (tools/setup-browser)"
    missing = [name for name in ("playwright", "jupyterlab", "ipywidgets") if importlib.util.find_spec(name) is None]
    return f"needs {', '.join(missing)} (tools/setup-browser)" if missing else why_not()


def ask_nobody_for_news(env: JupyterEnv) -> None:
    """Lab as it is, but that it looks for no news and no newer version of itself."""
    settings = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
    folder = env.root / "jupyter_config_dir" / "labconfig"
    folder.mkdir(parents=True)
    (folder / "default_setting_overrides.json").write_text(json.dumps(settings))


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    """A JupyterLab in a process of its own, with a repository of its own."""
    if reason := why_no_browser():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        env = JupyterEnv(tmp_path_factory.mktemp("browser"), patch)
        ask_nobody_for_news(env)
        running = JupyterServer(env, env.root / "notebooks", *EXPOSED, program="jupyterlab")
        yield running
        running.close()
        env.close()


@pytest.fixture(scope="package")
def page_of_lab(server: JupyterServer) -> Iterator[Lab]:
    """A browser with Lab in it."""
    with chromium() as browser:
        opened = Lab(server, browser)
        yield opened
        opened.close()


@pytest.fixture
def lab(page_of_lab: Lab) -> Iterator[Lab]:
    """Lab with nothing open."""
    yield page_of_lab
    page_of_lab.clear()

"""Kernel specs on a real Jupyter data directory: what `install` writes is what jupyter_client then reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory

from ijfs.jupyter import kernelspec
from ijfs.jupyter.kernelspec import KernelSpecError, install, installed, remove
from ijfs.jupyter.provisioner import IjfsProvisioner


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "more"))
    return tmp_path


def test_the_spec_runs_the_same_command_through_the_provisioner(data: Path) -> None:
    made = install()
    spec = KernelSpecManager().get_kernel_spec("ijfs-python3")
    assert made.directory == data / "jupyter/kernels/ijfs-python3"
    assert spec.display_name == "Python 3 (ijfs)"
    assert spec.argv[0] == sys.executable
    assert spec.argv[-1] == "{connection_file}"
    assert spec.metadata["kernel_provisioner"] == {"provisioner_name": "ijfs-provisioner", "config": {}}
    assert spec.metadata["debugger"] is True


def test_jupyter_loads_our_provisioner_with_the_configuration_of_the_spec(data: Path) -> None:
    install(name="mine", repo=data / "repo", network="slirp4netns", gpu=True)
    spec = KernelSpecManager().get_kernel_spec("mine")
    made = KernelProvisionerFactory.instance().create_provisioner_instance("id", spec, parent=None)
    assert isinstance(made, IjfsProvisioner)
    assert (made.repo, made.network, made.gpu) == (str(data / "repo"), "slirp4netns", True)


def test_a_kernel_that_insists_on_curve_is_not_promised_it(data: Path) -> None:
    install()
    assert "supported_encryption" not in KernelSpecManager().get_kernel_spec("ijfs-python3").metadata


def test_logos_come_along(data: Path) -> None:
    assert (install().directory / "logo-64x64.png").is_file()


def test_prefix_and_sys_prefix_say_where(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(data / "environment"))
    assert install(prefix=data / "here").directory == data / "here/share/jupyter/kernels/ijfs-python3"
    assert install(sys_prefix=True).directory == data / "environment/share/jupyter/kernels/ijfs-python3"


def test_list_names_ours_only_and_remove_takes_ours_only(data: Path) -> None:
    theirs = data / "jupyter/kernels/theirs"
    theirs.mkdir(parents=True)
    (theirs / "kernel.json").write_text(json.dumps({"argv": ["x"], "display_name": "X", "language": "x"}))
    broken = data / "jupyter/kernels/broken"
    broken.mkdir()
    (broken / "kernel.json").write_text('{"metadata": [')
    install(name="mine", snapshot="warm")
    (mine,) = installed()
    assert (mine.name, mine.display_name, mine.config) == ("mine", "warm (ijfs)", {"snapshot": "warm"})
    with pytest.raises(KernelSpecError, match="not made by ijfs"):
        remove("theirs")
    assert remove("mine") == mine.directory
    assert not mine.directory.exists()
    assert theirs.exists()


def test_installing_again_replaces_ours_and_never_anothers(data: Path) -> None:
    install(name="mine")
    install(name="mine", display_name="Again")
    assert [spec.display_name for spec in installed()] == ["Again"]
    theirs = data / "jupyter/kernels/theirs"
    theirs.mkdir()
    (theirs / "kernel.json").write_text(json.dumps({"argv": ["x"], "display_name": "X", "language": "x"}))
    with pytest.raises(KernelSpecError, match="there already"):
        install(name="theirs")


def test_a_spec_that_begins_otherwise_has_a_name_of_its_own_and_replaces_none(data: Path) -> None:
    names = [
        install().name,
        install(attach="lab").name,
        install(snapshot="lab~1").name,
        install(snapshot="0123456789abcdef" * 4).name,
    ]
    assert names == ["ijfs-python3", "ijfs-lab", "ijfs-lab-1", "ijfs-0123456789"]
    assert install(attach="lab", gpu=True).config == {"attach": "lab", "gpu": True}
    with pytest.raises(KernelSpecError, match="begin otherwise"):
        install(snapshot="lab")
    with pytest.raises(KernelSpecError, match="begin otherwise"):
        install(attach="python3")
    assert {spec.name: spec.config for spec in installed()}["ijfs-python3"] == {}
    assert install(name="ijfs-lab", snapshot="lab").config == {"snapshot": "lab"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"base": "nowhere"}, "no kernel spec named 'nowhere'"),
        ({"name": "with space"}, "Invalid kernel name"),
        ({"snapshot": "a", "attach": "b"}, "not both"),
    ],
)
def test_what_cannot_be_made_is_refused(data: Path, arguments: dict[str, str], sentence: str) -> None:
    with pytest.raises(KernelSpecError, match=sentence) as caught:
        install(**arguments)
    assert caught.value.exit_code == 2
    assert installed() == []


def test_a_sandboxed_spec_is_no_base_for_another(data: Path) -> None:
    install()
    with pytest.raises(KernelSpecError, match="provisioner of its own"):
        install("ijfs-python3", name="twice")


def test_an_unknown_name_is_not_removed(data: Path) -> None:
    with pytest.raises(KernelSpecError, match="no kernel spec"):
        remove("nobody")


def test_the_entry_point_has_the_name_the_specs_use() -> None:
    assert kernelspec.PROVISIONER in KernelProvisionerFactory.instance().get_provisioner_entries()

"""Real servers behind a real supervisor: begun by a request, parked in memory and on disk, brought back with what they
had in memory;
nothing lost under load; supervisors that are killed."""

from __future__ import annotations

import json
import signal
import urllib.request

import pytest
from deployments.conftest import Deployments, state
from deployments.load import Load
from waiting import eventually, patient

from ijfs.deployments import client
from ijfs.live.client import api
from ijfs.live.errors import InstanceExistsError
from ijfs_engine import Repository

pytestmark = [pytest.mark.root, pytest.mark.criu]


def test_a_server_keeps_its_memory_from_wake_to_wake(deployments: Deployments) -> None:
    web = deployments.deploy()
    begun = state(web)
    assert web.state == "running"
    assert web.snapshot is not None

    client.park(deployments.repo, "web")
    assert api.describe(deployments.repo, "web").parked
    assert state(web) == {**begun, "asked": begun["asked"] + 1}, "the same process goes on"

    client.park(deployments.repo, "web", "disk")
    assert not api.is_running(deployments.repo, "web")
    assert state(web)["asked"] > begun["asked"] + 1, "it goes on from its snapshot"

    with api.connect(deployments.repo, "web") as keeper:
        keeper.signal(signal.SIGKILL)
    assert eventually(lambda: not api.is_running(deployments.repo, "web"))
    assert state(web)["asked"] > 0, "one that died is back with the next request"

    client.undeploy(deployments.repo, "web")
    assert api.list_instances(deployments.repo) == []
    with Repository.open(deployments.repo) as repository:
        assert not repository.refs.branches()
        assert not repository.refs.tags()


def test_a_name_that_is_somebodys_is_refused(deployments: Deployments) -> None:
    deployments.env.command("web", "echo mine > /root/mine; sleep 60")
    deployments.env.save("web", stop=True)
    with pytest.raises(InstanceExistsError, match="program `web`"):
        deployments.deploy()
    api.remove(deployments.repo, "web")
    with pytest.raises(InstanceExistsError, match="branch `web`"):
        deployments.deploy(start=False)
    assert eventually(lambda: deployments.supervisors() == []), "there is nothing to supervise"
    with Repository.open(deployments.repo) as repository:
        assert "web" in repository.refs.branches()


def test_no_request_is_lost_while_it_is_parked_and_woken(deployments: Deployments) -> None:
    web = deployments.deploy()
    with Load(web.port) as load:
        for cycle in range(6):
            client.park(deployments.repo, "web", "disk" if cycle % 3 == 2 else "memory")
            assert answers_go_on(load)
    assert load.wrong == []
    assert deployments.info().wakes > 1


def test_a_killed_supervisor_leaves_all_to_the_next(deployments: Deployments) -> None:
    web = deployments.deploy()
    before = state(web)
    for depth in ("running", "memory", "disk"):
        if depth != "running":
            client.park(deployments.repo, "web", "disk" if depth == "disk" else "memory")
        deployments.kill_supervisor()
        assert deployments.info().state == depth, "a command starts the next one"
        now = state(web)
        assert now["asked"] > before["asked"]
        before = now
    assert deployments.info().port == web.port


def test_a_notice_that_the_machine_goes_saves_all(deployments: Deployments) -> None:
    web = deployments.deploy()
    asked = state(web)["asked"]
    client.park(deployments.repo, "web")
    deployments.kill_supervisor(signal.SIGTERM)
    assert not api.is_running(deployments.repo, "web")
    assert deployments.info().state == "disk"
    assert state(web)["asked"] > asked


def test_forks_share_a_port_and_give_way_to_another_version_under_load(deployments: Deployments) -> None:
    web = deployments.deploy(replicas=3)
    assert len(web.instances) == 3
    assert all(api.is_running(deployments.repo, name) for name in web.instances)
    with Load(web.port) as load:
        assert eventually(lambda: load.answers > 50, 60)
        asked = {name: asked_by_its_own_port(deployments, name) for name in web.instances}
        replaced = deployments.deploy(replace=True, port=web.port)
        assert answers_go_on(load)
        assert eventually(lambda: not any(api.is_running(deployments.repo, name) for name in web.instances), 60)
    assert min(asked.values()) > 2, asked
    assert load.wrong == []
    assert replaced.instances == ("web-v2",)


def answers_go_on(load: Load) -> bool:
    """Whether requests are answered that come from now on."""
    before = load.answers
    return eventually(lambda: load.answers > before + 20, 60)


def asked_by_its_own_port(deployments: Deployments, instance: str) -> int:
    """How often one instance was asked."""
    port = api.describe(deployments.repo, instance).relay[0].host
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/state", timeout=patient(60.0)) as answer:
        return int(json.load(answer)["asked"])

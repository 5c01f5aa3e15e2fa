"""The panel "Snapshots" in JupyterLab: each sentence of docs/jupyter.md that a user sees."""

from __future__ import annotations

import json
import re

import pytest
from lab import Lab, Notebook
from playwright.sync_api import expect
from waiting import eventually

from ijfs.jupyter import kernelspec
from ijfs.live.client import api as client

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.criu]

SLIDER = "import ipywidgets\nslider = ipywidgets.IntSlider(value=3, max=9)\nslider"


def test_before_the_first_save_the_panel_says_what_a_snapshot_is(lab: Lab) -> None:
    lab.notebook("1")
    expect(lab.panel.get_by_text("No snapshots yet.")).to_be_visible()
    lab.button("Save the first").click()
    lab.answer("Save", "the very first")
    expect(lab.row("the very first")).to_be_visible()


def test_a_snapshot_has_the_cells_that_were_never_saved(lab: Lab) -> None:
    notebook = lab.notebook("1")
    notebook.type(0, "never_saved = 1")
    snapshot = lab.save("with unsaved cells")
    assert sources(lab, snapshot) == ["never_saved = 1"]
    on_disk = json.loads((lab.server.root / notebook.path).read_text())
    assert on_disk["cells"][0]["source"] == "1"


def test_a_save_made_in_a_terminal_is_shown_by_itself_and_has_the_unsaved_cells(lab: Lab) -> None:
    notebook = lab.notebook("1")
    notebook.type(0, "typed = 1")
    snapshot = lab.server.env.save(notebook.instance, "from a terminal")
    expect(lab.row("from a terminal")).to_be_visible()
    assert sources(lab, snapshot) == ["typed = 1"]


def test_a_program_that_waits_for_input_is_answered_after_going_back(lab: Lab) -> None:
    notebook = lab.notebook("name = input('who? ')", "name")
    notebook.begin(0)
    expect(notebook.cell(0).locator(".jp-Stdin-input")).to_be_visible()
    lab.save("waiting")
    notebook.cell(0).locator(".jp-Stdin-input").fill("first")
    notebook.cell(0).locator(".jp-Stdin-input").press("Enter")
    expect(notebook.prompt(0)).to_have_text("[1]:")
    lab.go_back("waiting")
    lab.toast("waits for input").get_by_role("button", name="Answer it").click()
    lab.answer("Send", "second")
    notebook.is_idle()
    assert notebook.run(1) == "'second'"


def test_going_back_brings_kernel_and_notebook_back_and_undo_returns(lab: Lab) -> None:
    notebook = lab.notebook("x = 1", "x = 2", "x")
    notebook.run(0)
    lab.save("x is one")
    notebook.run(1)
    notebook.type(2, "x * 100")
    assert notebook.run(2) == "200"
    lab.go_back("x is one")
    expect(notebook.prompt(1)).to_have_text("[ ]:")
    assert (notebook.source(2), notebook.run(2)) == ("x", "1")
    lab.toast("Back at").get_by_role("button", name="Undo").click()
    expect(lab.toast("Returned")).to_be_visible()
    assert (notebook.source(2), notebook.run(2)) == ("x * 100", "200")


def test_the_newer_text_is_kept_where_the_user_wishes_it(lab: Lab) -> None:
    notebook = lab.notebook("x = 1", "x = 2")
    notebook.run(0)
    lab.save("kept text")
    notebook.type(1, "x = 'newer text'")
    notebook.run(1)
    lab.command("ijfs:keep-newer-text")
    lab.go_back("kept text")
    lab.command("ijfs:keep-newer-text")
    assert notebook.source(1) == "x = 'newer text'"
    expect(notebook.cell(1)).to_have_class(re.compile("ijfs-TurnedBack"))
    expect(notebook.cell(0)).not_to_have_class(re.compile("ijfs-TurnedBack"))


def test_the_last_cell_is_undone(lab: Lab) -> None:
    notebook = lab.notebook("x = [1]", "x.append(2)", "x")
    notebook.run(0)
    lab.save("before the append")
    notebook.run(1)
    lab.button("Undo cell").click()
    expect(lab.toast(re.compile("[Uu]ndone"))).to_be_visible()
    assert notebook.run(2) == "[1]"


@pytest.mark.parametrize("choice", ["Interrupt and go back", "Go back all the same"])
def test_going_back_while_a_cell_runs_leaves_no_busy_cell(lab: Lab, choice: str) -> None:
    notebook = lab.notebook("import time; x = 1", "time.sleep(1000)", "x")
    notebook.run(0)
    lab.save("before the long cell")
    notebook.begin(1)
    expect(notebook.prompt(1)).to_have_text("[*]:")
    lab.row("before the long cell").click()
    lab.button("Go back here").click()
    lab.answer(choice)
    expect(lab.toast("Back at")).to_be_visible()
    expect(notebook.prompt(1)).to_have_text("[ ]:")
    notebook.shows_idle()
    assert notebook.run(2) == "1"


def test_going_back_from_a_terminal_leaves_no_busy_cell_and_the_notebook_is_offered(lab: Lab) -> None:
    notebook = lab.notebook("import time; x = 1", "time.sleep(1000)", "x")
    notebook.run(0)
    snapshot = lab.save("before the long cell")
    notebook.begin(1)
    expect(notebook.prompt(1)).to_have_text("[*]:")
    lab.ijfs("restore", snapshot, "--replace", "--name", notebook.instance, "--force")
    expect(notebook.prompt(1)).not_to_have_text("[*]:")
    notebook.shows_idle()
    lab.toast("The kernel went back").get_by_role("button").first.click()
    expect(notebook.prompt(1)).to_have_text("[ ]:")


def test_a_slider_shows_the_value_that_the_kernel_has(lab: Lab) -> None:
    notebook = lab.notebook(SLIDER, "slider.value = 8", "slider.value")
    notebook.run(0)
    readout = notebook.cell(0).locator(".widget-readout")
    expect(readout).to_have_text("3")
    lab.save("slider at three")
    notebook.run(1)
    expect(readout).to_have_text("8")
    lab.go_back("slider at three")
    expect(readout).to_have_text("3")
    assert notebook.run(2) == "3"


def test_a_renamed_notebook_keeps_its_document_in_snapshots(lab: Lab) -> None:
    notebook = lab.notebook("renamed = 1")
    lab.command("docmanager:rename")
    lab.answer("Rename", "another-name.ipynb")
    expect(lab.page.locator(".lm-TabBar-tab", has_text="another-name.ipynb")).to_be_visible()
    snapshot = lab.save("renamed")
    assert sources(lab, snapshot) == ["renamed = 1"]
    by_terminal = lab.server.env.save(
        Notebook(lab, notebook.node, "another-name.ipynb").instance, "and from a terminal"
    )
    assert sources(lab, by_terminal) == ["renamed = 1"]


def test_a_fork_opens_beside_with_a_copy_of_the_notebook_and_its_value(lab: Lab) -> None:
    notebook = lab.notebook("x = 5", "x", name="origin")
    notebook.run(0)
    lab.save("to fork from")
    lab.row("to fork from").click()
    lab.button("Fork").click()
    fork = lab.opened_beside(notebook)
    assert (fork.source(1), fork.run(1)) == ("x", "5")
    fork.type(0, "x = 6")
    fork.run(0)
    assert (notebook.source(0), notebook.run(1)) == ("x = 5", "5")
    assert fork.instance != notebook.instance


def test_a_snapshot_is_compared_with_now(lab: Lab) -> None:
    notebook = lab.notebook("x = 1", "y = [1, 2, 3]; open('out.txt', 'w').write('hello')")
    notebook.run(0)
    lab.save("to compare with")
    notebook.type(0, "x = 2.5")
    notebook.run(0)
    notebook.run(1)
    notebook.type(1, "never_run = 1")
    lab.row("to compare with").click()
    lab.button("Compare").click()
    code, variables, files = (
        lab.page.get_by_role("region", name=name, exact=True) for name in ("Code", "Variables", "Files")
    )
    expect(code.locator(".ijfs-mod-removed", has_text="x = 1")).to_be_visible()
    expect(code.locator(".ijfs-mod-added", has_text="x = 2.5")).to_be_visible()
    expect(code.locator(".ijfs-mod-added", has_text="never_run = 1")).to_be_visible()
    expect(variables.get_by_role("row", name=re.compile("^~ x "))).to_be_visible()
    expect(variables.get_by_role("row", name=re.compile(r"^\+ y .*list"))).to_be_visible()
    expect(files.get_by_role("row", name=re.compile(r"\+ .*out\.txt"))).to_be_visible()


def test_names_tags_and_removal(lab: Lab) -> None:
    lab.notebook("1")
    lab.save("to keep")
    snapshot = lab.save("to remove")
    lab.save("the newest")
    lab.row("to keep").click()
    lab.button("Tag").click()
    lab.answer("OK", "precious")
    expect(lab.row("to keep").locator(".ijfs-Chip.ijfs-mod-tag")).to_have_text("precious")
    lab.button("Rename").click()
    lab.answer("OK", "my-line")
    expect(lab.row("to keep").locator(".ijfs-Chip.ijfs-mod-branch")).to_have_text("my-line")
    lab.row("the newest").click()
    lab.button("Rename").click()
    lab.answer("OK", "taken")
    expect(lab.toast("live program")).to_be_visible()
    lab.row("to remove").click()
    lab.button("Delete").click()
    expect(lab.dialog).to_contain_text(re.compile(r"\d+ k?M?B are its own and come back"))
    lab.answer("Delete")
    expect(lab.row("to remove")).to_have_count(0)
    assert snapshot not in {each["id"] for each in lab.server.ask("tree")["snapshots"]}


def test_files_are_adopted_after_a_look(lab: Lab) -> None:
    notebook = lab.notebook("open('result.csv', 'w').write('1,2')")
    notebook.run(0)
    lab.save("with a file")
    assert not (lab.server.root / "result.csv").exists()
    lab.row("with a file").click()
    lab.button("Adopt files").click()
    expect(lab.dialog).to_contain_text(re.compile(r"\+ .*result\.csv"))
    lab.answer("Adopt")
    expect(lab.toast("adopted")).to_be_visible()
    assert (lab.server.root / "result.csv").read_text() == "1,2"


def test_a_mark_at_each_cell_goes_back_to_before_it(lab: Lab) -> None:
    notebook = lab.notebook("x = 1", "x = 2", "x")
    notebook.run(0)
    lab.save("after the first cell")
    notebook.run(1)
    notebook.cell(1).hover()
    notebook.cell(1).get_by_role("button", name=re.compile(r"Go back to before cell \[2\]")).click()
    expect(lab.toast("Back at")).to_be_visible()
    assert notebook.run(2) == "1"


def test_changing_the_kernel_ends_no_program_that_was_joined(lab: Lab) -> None:
    origin = lab.notebook("x = 'still here'", "x")
    origin.run(0)
    snapshot = lab.save("to be joined")
    client.restore(lab.server.env.repo, snapshot, "joined")
    guest = lab.notebook("x", kernel=kernelspec.install(attach="joined").name)
    assert guest.run(0) == "'still here'"
    lab.command("notebook:change-kernel")
    lab.dialog.locator("select").select_option(label="Python 3 (ijfs)")
    lab.answer("Select")
    guest.is_ready()
    assert eventually(lambda: guest.instance != "joined", 60)
    assert "joined" in lab.server.env.instances()
    lab.server.env.stop("joined")


def test_the_keyboard_does_it_all(lab: Lab) -> None:
    notebook = lab.notebook("x = 1", "x = 2", "x")
    notebook.run(0)
    lab.page.keyboard.press("Control+Alt+s")
    lab.answer("Save", "by the keyboard")
    expect(lab.row("by the keyboard")).to_be_visible()
    notebook.run(1)
    lab.server.env.save(notebook.instance, "the second")
    expect(lab.row("the second")).to_be_visible()
    lab.page.keyboard.press("Control+Alt+h")
    tree = lab.panel.get_by_role("tree")
    expect(tree).to_be_focused()
    lab.page.keyboard.press("Home")
    expect(lab.panel.get_by_role("treeitem", selected=True)).to_contain_text("by the keyboard")
    lab.page.keyboard.press("ArrowDown")
    expect(lab.panel.get_by_role("treeitem", selected=True)).to_contain_text("the second")
    lab.page.keyboard.press("ArrowUp")
    lab.page.keyboard.press("Enter")
    expect(lab.toast("Back at")).to_be_visible()
    assert notebook.run(2) == "1"


def test_the_filter_finds_what_was_saved(lab: Lab) -> None:
    lab.notebook("1")
    lab.save("first of two")
    lab.save("second one")
    lab.panel.get_by_label("Filter the snapshots").fill("two")
    expect(lab.row("second one")).to_have_count(0)
    expect(lab.row("first of two")).to_have_count(1)
    lab.panel.get_by_label("Filter the snapshots").fill("")


def test_a_kernel_that_is_not_ijfs_is_said_to_be_none(lab: Lab) -> None:
    lab.notebook("1", kernel="python3")
    expect(lab.panel.get_by_role("status")).to_contain_text("not run in ijfs")
    expect(lab.button("Save")).to_be_disabled()
    expect(lab.panel.get_by_role("button", name="Change kernel…")).to_be_visible()


def test_the_status_bar_says_what_was_saved(lab: Lab) -> None:
    lab.notebook("1")
    status = lab.page.locator(".ijfs-Status-button")
    expect(status).to_contain_text("not saved yet")
    snapshot = lab.save("for the status bar")
    expect(status).to_contain_text(re.compile(rf"ijfs ● {snapshot[:8]} · [\d.]+ [kM]?B · [\d.]+ m?s"))


def test_a_reopened_notebook_is_offered_its_last_snapshot(lab: Lab) -> None:
    notebook = lab.notebook("x = 'from before'", "x", name="reopened")
    notebook.run(0)
    lab.save("the day's end")
    lab.clear()
    again = lab.open(notebook.path)
    lab.toast("The last snapshot of this notebook").get_by_role("button", name="Go on from it").click()
    expect(again.prompt(0)).to_have_text("[1]:")
    assert again.run(1) == "'from before'"


def sources(lab: Lab, snapshot: str) -> list[str]:
    """The cells of a snapshot's document."""
    stored = lab.server.ask("document", snapshot=snapshot)["document"]
    return [cell["source"] for cell in stored["cells"]]

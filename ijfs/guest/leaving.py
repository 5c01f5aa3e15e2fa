"""What `exit` and `quit` in an IPython kernel come to.

IPython ends its kernel, whoever typed that. One that nobody started for himself alone (`ijfs kernel start`, a fork, a
restore) goes on instead, and only the console leaves, as it leaves a terminal of tmux. Any other is saved first.
"""

from typing import Any

from ijfs.guest import port, saving


def watch(shell: Any) -> None:
    """Ask the keeper before the shell exits. A shell that cannot be left (it is no kernel's) stays as it is."""
    if not hasattr(shell, "keepkernel_on_exit") or isinstance(getattr(shell, "ask_exit", None), Leaving):
        return
    shell.ask_exit = Leaving(shell, shell.ask_exit)


class Leaving:
    """Stands in the place of a shell's `ask_exit`, which it was given as `exits`."""

    def __init__(self, shell: Any, exits: Any) -> None:
        self._shell, self._exits = shell, exits

    def __call__(self) -> None:
        """Exit: the client alone, where the kernel is to go on."""
        if not self._shell.keepkernel_on_exit:  # exit(keep_kernel=True) asks for no more than that
            self._shell.keepkernel_on_exit = _goes_on()
        self._exits()


def _goes_on() -> bool:
    """Whether the kernel is to go on. Where it may end, what it did is saved; it goes on where that cannot be done, and
    where it comes back from that save."""
    try:
        answer = port.ask({"verb": "exit"})
    except port.GuestError:
        return False  # no keeper, or one that knows nothing of it: IPython as it is
    if answer.get("stays"):
        name = answer.get("instance")
        print(f"{name} runs on: `ijfs stop {name}` ends it")
        return True
    if not answer.get("unsaved"):
        return False
    try:
        return saving.save("before `exit`", auto=True).resumed
    except port.GuestError as error:
        print(f"not ended, for what it did could not be saved: {error}")
        return True

# shellcheck shell=bash
# What tools/setup says, and how it fails: one line per step, a sentence and a next step per failure.
# Sourced by tools/setup, before the other parts.

SHORTFALLS=()

# say STEP WHAT…: one progress line.
say() {
    printf '%-12s %s\n' "$1" "${*:2}"
}

# die WHAT NEXT: the end, with what happened and what to do about it.
die() {
    printf 'tools/setup: %s\n  what to do: %s\n' "$1" "$2" >&2
    exit 1
}

# quietly COMMAND…: its output goes to the log; the status is the command's.
quietly() {
    printf '\n$ %s\n' "$*" >>"$LOG"
    "$@" >>"$LOG" 2>&1
}

# or_die WHAT NEXT COMMAND…: as quietly, but a failure ends the set-up.
or_die() {
    quietly "${@:3}" || die_with_log "$1" "$2"
}

# die_with_log WHAT NEXT: as die, with the end of what the last command said.
die_with_log() {
    tail -n 15 "$LOG" | sed 's/^/    | /' >&2
    die "$1" "$2 (all of the output: ${LOG#"$CHECKOUT"/})"
}

# fall_short WHAT NEXT: go on without something; the last lines will say so again.
fall_short() {
    SHORTFALLS+=("$1"$'\n'"  what to do: $2")
}

report_outcome() {
    if ((${#SHORTFALLS[@]} == 0)); then
        say "ready" ".venv/bin/ijfs doctor says what this machine can do"
        return
    fi
    say "ready, but" "not everything:"
    printf '%s\n' "${SHORTFALLS[@]}" >&2
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root: $*" "run tools/setup as root, or install sudo"
    fi
}

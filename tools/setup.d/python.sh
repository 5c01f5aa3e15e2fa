# shellcheck shell=bash
# The Python environment, .venv in the checkout: what requirements/*.lock pins, and this package, editable.
# Sourced by tools/setup; provides ensure_python_environment.
#
# Stamps in .venv say what it was made from, so that each part is done again only when its source changed: the
# checkout's path, the locks, the packaging files, the sources of the extensions.

VENV=$CHECKOUT/.venv
PYTHON_MINORS=(14 13 12 11) # newest first; those that the locks are resolved and tested for

ensure_python_environment() {
    ensure_venv
    ensure_locked_packages
    ensure_gpu_packages
    ensure_editable_install
    ensure_jupyter_files
    ensure_extensions
    ensure_bytecode
}

# A .venv has its own path in every script, so one that was moved is made again.
ensure_venv() {
    stamped place "$VENV" && "$VENV/bin/python" -c 'import pip' 2>/dev/null && return
    local python
    python=$(find_python) || die "found no Python 3.11 to 3.14 with venv and its C headers" \
        "install python3-dev and python3-venv, or set IJFS_PYTHON to an interpreter"
    say "python" "making .venv with $python, $("$python" --version)"
    or_die "could not make .venv" "see that $python -m venv works" "$python" -m venv --clear "$VENV"
    stamp place "$VENV"
}

find_python() {
    local python
    while read -r python; do
        fit_for_venv "$python" && echo "$python" && return
    done < <(python_candidates)
    return 1
}

# The newest first; of the same version the distribution's, whose headers apt keeps in step.
python_candidates() {
    if [[ -n ${IJFS_PYTHON:-} ]]; then
        echo "$IJFS_PYTHON"
        return
    fi
    local minor
    for minor in "${PYTHON_MINORS[@]}"; do
        echo "/usr/bin/python3.$minor"
        type -ap "python3.$minor" || true
    done
}

fit_for_venv() {
    "$1" - 2>/dev/null <<'EOF'
import ensurepip, pathlib, sys, sysconfig, venv
sys.exit(not ((3, 11) <= sys.version_info < (3, 15) and pathlib.Path(sysconfig.get_path("include"), "Python.h").is_file()))
EOF
}

ensure_locked_packages() {
    local made_from
    made_from=$(digest requirements/build.lock requirements/checkout.lock)
    if stamped locks "$made_from"; then
        say "python" "$("$VENV/bin/python" --version | cut -d' ' -f2), .venv has what the locks pin"
        return
    fi
    say "python" "installing what the locks pin into .venv"
    # In two steps: what comes as source only is built, without build isolation, by the pinned tools.
    pip_install --only-binary :all: --require-hashes --requirement requirements/build.lock
    pip_install --no-build-isolation --require-hashes --requirement requirements/checkout.lock
    stamp locks "$made_from"
}

# cuda-bindings talk to the driver, so without one they are only weight.
ensure_gpu_packages() {
    [[ -e /dev/nvidiactl ]] || return 0
    local made_from
    made_from=$(digest requirements/gpu.lock)
    stamped gpu "$made_from" && return
    say "python" "installing the gpu extra: there is an NVIDIA driver"
    pip_install --no-build-isolation --require-hashes --requirement requirements/gpu.lock
    stamp gpu "$made_from"
}

ensure_editable_install() {
    local made_from
    made_from=$(digest pyproject.toml setup.py)
    stamped editable "$made_from" && return
    say "python" "installing ijfs into .venv, editable"
    pip_install --no-deps --no-build-isolation --editable .
    stamp editable "$made_from"
    stamp extensions "$(extension_sources | xargs_digest)" # pip has compiled them on the way
}

# An editable install brings no data files (pyproject.toml, data-files): what Jupyter looks for in its environment is
# linked, so that what was built anew is found, too.
ensure_jupyter_files() {
    mkdir -p "$VENV/etc/jupyter/jupyter_server_config.d" "$VENV/share/jupyter/labextensions"
    ln -sfn "$CHECKOUT/etc/jupyter/jupyter_server_config.d/ijfs.json" "$VENV/etc/jupyter/jupyter_server_config.d/ijfs.json"
    ln -sfn "$CHECKOUT/labextension/built" "$VENV/share/jupyter/labextensions/ijfs-panel"
}

ensure_extensions() {
    local made_from
    made_from=$(extension_sources | xargs_digest)
    stamped extensions "$made_from" && return
    say "python" "compiling the engine's extensions"
    or_die "the engine's extensions do not compile" "correct the source named above" \
        "$VENV/bin/python" setup.py --quiet build_ext --inplace
    stamp extensions "$made_from"
}

# Every keeper and pager is a new interpreter, and an environment may forbid them to write bytecode (containers often
# set PYTHONDONTWRITEBYTECODE): compiling our modules anew each time took 0.1 s of a restore.
ensure_bytecode() {
    "$VENV/bin/python" -m compileall -q ijfs engine >>"$LOG" 2>&1 || true
}

extension_sources() {
    find engine/ijfs_engine ijfs/live -name '*.pyx' -o -name '*.pxd' -o -name '*.[ch]' | sort
}

pip_install() {
    or_die "pip could not install: $*" "look for the cause above: a network or proxy, or a missing header" \
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

# digest FILE…: one hash over their names and contents.
digest() {
    sha256sum "$@" | sha256sum | cut -d' ' -f1
}

xargs_digest() {
    xargs --no-run-if-empty sha256sum | sha256sum | cut -d' ' -f1
}

stamped() {
    [[ -e $VENV/.made-from-$1 && $(<"$VENV/.made-from-$1") == "$2" ]]
}

stamp() {
    echo "$2" >"$VENV/.made-from-$1"
}

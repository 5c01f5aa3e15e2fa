# shellcheck shell=bash
# A CRIU that works on this kernel. Sourced by tools/setup; provides ensure_criu.
#
# In this order: one that is there already, the distribution's, Debian's newer one in a private prefix. The last is for
# Debian 12, whose 3.17.1 does not run on new kernels (`vdso: Unexpected rt vDSO area bounds`). It is not built from
# source, because apt checks the signatures of what it fetches; and it brings its own C library, because installing
# Debian testing's over the system's would upgrade half the system.
#
# ijfs/live/criu/command.py looks in the same places, in the same order.

CRIU_MINIMUM=4.1.1 # the oldest that ran on Linux 6.18
CRIU_PREFIX=$CHECKOUT/.prefix
# Tested 2026-11: testing and unstable had 4.2.1, stable (13) 4.1.1. Suites are named, not versions: those vanish.
CRIU_SUITES=(testing unstable stable)

ensure_criu() {
    find_working_criu || install_distribution_criu || install_private_criu || { no_criu && return; }
    say "criu" "$(criu_version "$CRIU") at ${CRIU#"$CHECKOUT"/}"
}

# The steps below leave in CRIU the one that works, or fail.

find_working_criu() {
    while read -r CRIU; do
        [[ -x $CRIU ]] && criu_works "$CRIU" && return
    done < <(criu_places)
    [[ -z ${IJFS_CRIU:-} ]] || die "IJFS_CRIU is $IJFS_CRIU, which is no CRIU >= $CRIU_MINIMUM that passes \`criu check\`" \
        "see what \`$IJFS_CRIU check\` says as root, or unset IJFS_CRIU"
    return 1
}

criu_places() {
    if [[ -n ${IJFS_CRIU:-} ]]; then
        echo "$IJFS_CRIU"
        return
    fi
    echo "$CRIU_PREFIX/bin/criu"
    echo "${HOME:-/root}/.local/share/ijfs/criu/bin/criu"
    PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin type -P criu || true # a user's PATH often lacks the sbin folders
}

criu_version() {
    "$1" --version 2>/dev/null | sed -n 's/^Version: *//p'
}

# criu_works CRIU: it is new enough, passes its own check of this kernel, and can save a program with a TCP socket. The
# answer is kept for this binary on this kernel, so that a user with sudo is not asked for a password each time.
criu_works() {
    criu_is_recent "$1" || return 1
    local passed
    passed="$1 $(criu_version "$1") $(stat --format %Y "$1") $(uname --kernel-release)"
    grep --quiet --line-regexp --fixed-strings "$passed" "$CACHE/criu-passed" 2>/dev/null && return
    if criu_checks "$1" && criu_saves "$1"; then
        echo "$passed" >"$CACHE/criu-passed"
    else
        CRIU_OBJECTION=$(grep '^Error\|: Error (' "$LOG" | tail -n 1 || true)
        return 1
    fi
}

# criu_checks CRIU: in a container with a read-only /proc/sys, with one that it may write to, as ijfs runs it.
criu_checks() {
    # shellcheck disable=SC2016 # the inner shell's
    quietly as_root unshare --mount sh -c '[ -w /proc/sys/kernel/ns_last_pid ] ||
        mount -o remount,bind,rw /proc/sys; exec "$0" check' "$1"
}

# criu_saves CRIU: a program with a TCP socket, tried. 4.1.1 passes its check on Linux 6.18 and cannot (`Can't get 1:16
# opt`): it asks a TCP socket for an option that only Unix sockets have by now.
criu_saves() {
    local work pid status
    work=$(mktemp --directory)
    setsid python3 -c 'import os, socket, time
os.closerange(3, 4096)  # locks and pipes of whoever called
socket = socket.create_server(("127.0.0.1", 0))
print("up", flush=True)
time.sleep(60)' </dev/null >"$work/up" 2>/dev/null &
    pid=$!
    timeout 10 sh -c "until [ -s $work/up ]; do sleep 0.05; done" || true
    quietly as_root timeout 20 "$1" dump --tree "$pid" --images-dir "$work" --log-file dump.log --leave-running
    status=$?
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    grep --no-messages 'Error (' "$work/dump.log" | grep --invert-match RLIMIT | head -n 1 >>"$LOG" || true
    as_root rm -rf "$work"
    return "$status"
}

criu_is_recent() {
    local version
    version=$(criu_version "$1")
    [[ -n $version ]] && at_least "$CRIU_MINIMUM" "$version"
}

# at_least MINIMUM VERSION
at_least() {
    printf '%s\n' "$1" "$2" | sort --check=quiet --version-sort
}

# distribution_criu: the version in the archives that apt is configured with. Ubuntu 24.04 has none, in any component.
distribution_criu() {
    apt-cache policy criu 2>/dev/null | sed -n 's/^  Candidate: \([0-9].*\)/\1/p' | grep .
}

install_distribution_criu() {
    local candidate
    candidate=$(distribution_criu) && at_least "$CRIU_MINIMUM" "$candidate" || return 1
    say "criu" "installing the distribution's, $candidate"
    apt_install criu && CRIU=$(PATH=$PATH:/usr/sbin type -P criu) && criu_works "$CRIU"
}

# A prefix that runs is not fetched again: if its check fails, it is the kernel or a missing privilege that says no.
install_private_criu() {
    CRIU=$CRIU_PREFIX/bin/criu
    criu_is_recent "$CRIU" || { repoint_prefix && criu_is_recent "$CRIU"; } || fetch_private_criu || return 1
    criu_works "$CRIU"
}

fetch_private_criu() {
    local mirror suite
    mirror=$(debian_mirror) && ensure_packages_for_prefix || return 1
    for suite in "${CRIU_SUITES[@]}"; do
        say "criu" "fetching Debian $suite's into ${CRIU_PREFIX#"$CHECKOUT"/}"
        if build_prefix "$mirror" "$suite" && criu_is_recent "$CRIU_PREFIX/bin/criu"; then
            return
        fi
    done
    return 1
}

ensure_packages_for_prefix() {
    local missing
    mapfile -t missing < <(not_installed patchelf debian-archive-keyring)
    ((${#missing[@]} == 0)) || apt_install "${missing[@]}"
}

# debian_mirror: the URI of the Debian archive that this machine's apt is configured with.
debian_mirror() {
    if [[ -n ${IJFS_DEBIAN_MIRROR:-} ]]; then
        echo "$IJFS_DEBIAN_MIRROR"
        return
    fi
    command -v apt-get >/dev/null || return 1
    # The origin of a source is known only once its lists are there.
    apt_sources | grep --quiet '^[^|]' || quietly apt_get update
    apt_sources | sed -n 's/^Debian|Debian|//p' | sort --unique | grep --max-count 1 .
}

# apt_sources: ORIGIN|LABEL|URI of every archive that apt is configured with.
apt_sources() {
    # shellcheck disable=SC2016 # these are apt's variables
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages'
}

# build_prefix MIRROR SUITE: fetch criu with everything it links and lay it out as PREFIX/bin and PREFIX/lib.
build_prefix() {
    local work
    work=$(mktemp --directory)
    quietly fetch_criu "$work" "$@" && quietly unpack_criu "$work" && repoint_prefix
    local status=$?
    rm -rf "$work"
    return "$status"
}

# fetch_criu WORK MIRROR SUITE: to apt, WORK is a machine without a single package whose only source is SUITE. It then
# resolves criu down to the C library by itself, so no list of library packages has to be kept here.
fetch_criu() {
    local work=$1
    mkdir -p "$work"/{sources,lists/partial,cache/archives/partial,nothing}
    : >"$work/status"
    private_source "$2" "$3" >"$work/sources/debian.sources"
    private_apt_configuration "$work" >"$work/apt.conf"
    apt-get --config-file "$work/apt.conf" update &&
        apt-get --config-file "$work/apt.conf" install --yes --no-install-recommends --download-only criu
}

private_source() {
    local keyring=/usr/share/keyrings/debian-archive-keyring
    [[ -e $keyring.pgp ]] && keyring+=.pgp || keyring+=.gpg
    printf '%s\n' "Types: deb" "URIs: $1" "Suites: $2" "Components: main" "Signed-By: $keyring"
}

# The machine's own configuration stays in force (proxies, credentials) but for where things lie, pins and hooks.
private_apt_configuration() {
    cat <<EOF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
Dir::Etc::SourceList "$1/nothing";
Dir::Etc::SourceParts "$1/sources";
Dir::Etc::Preferences "$1/nothing";
Dir::Etc::PreferencesParts "$1/nothing";
Dir::State::Lists "$1/lists";
Dir::State::status "$1/status";
Dir::State::extended_states "$1/extended_states";
Dir::Cache "$1/cache";
Dir::Cache::Archives "$1/cache/archives";
Dir::Log "$1";
APT::Default-Release "";
APT::Sandbox::User "root";
Acquire::Languages "none";
EOF
}

# unpack_criu WORK: the fetched packages become PREFIX/bin/criu and PREFIX/lib, with a note of what they were.
unpack_criu() {
    local work=$1 package libraries
    for package in "$work"/cache/archives/*.deb; do
        dpkg-deb --extract "$package" "$work/root" || return
        dpkg-deb --show "$package" >>"$work/packages"
    done
    mapfile -t libraries < <(find "$work"/root/{usr/,}lib/*-linux-gnu -maxdepth 1 -name '*.so*' 2>/dev/null)
    rm -rf "$CRIU_PREFIX"
    install -D --target-directory "$CRIU_PREFIX/bin" "$work/root/usr/sbin/criu" &&
        mkdir -p "$CRIU_PREFIX/lib" &&
        cp --archive "${libraries[@]}" "$CRIU_PREFIX/lib" &&
        sort "$work/packages" >"$CRIU_PREFIX/criu-packages"
}

# repoint_prefix: make PREFIX/bin/criu use PREFIX/lib, C library and all. The kernel wants an absolute path to the
# dynamic loader, so a prefix that was moved needs this again. An rpath, unlike a runpath, also holds for the libraries
# of libraries, so only the program is touched.
repoint_prefix() {
    local criu=$CRIU_PREFIX/bin/criu loader
    [[ -x $criu ]] && command -v patchelf >/dev/null || return 1
    loader=$(basename "$(patchelf --print-interpreter "$criu")")
    quietly patchelf --set-interpreter "$CRIU_PREFIX/lib/$loader" --force-rpath --set-rpath "$CRIU_PREFIX/lib" "$criu"
}

no_criu() {
    local what next
    what="no CRIU here is $CRIU_MINIMUM or newer and passes \`criu check\`: programs cannot be saved or restored"
    what+=$'\n'"  tried: $(criu_attempts)"
    if [[ -n ${CRIU_OBJECTION:-} ]]; then
        what+=$'\n'"  \`criu check\`: $CRIU_OBJECTION"
        next="give this machine or container what the check asks for (root with all capabilities, as a rule)"
    else
        next="set IJFS_DEBIAN_MIRROR to the URI of a Debian archive, or IJFS_CRIU to a CRIU that works"
    fi
    next+=", then run tools/setup again"
    [[ $REQUIRE_CRIU == no ]] || die "$what" "$next"
    say "criu" "none that works; going on without"
    fall_short "$what" "$next"
}

# criu_attempts: what each place had to say, in one line.
criu_attempts() {
    local criu archive
    while read -r criu; do
        [[ -x $criu ]] && printf '%s (version %s), ' "$criu" "$(criu_version "$criu")"
    done < <(criu_places)
    archive=$(distribution_criu) || archive="has none"
    printf "the distribution's archive (%s), " "$archive"
    if debian_mirror >/dev/null; then
        printf "Debian's %s" "${CRIU_SUITES[*]}"
    else
        printf "no Debian archive is configured in apt"
    fi
}

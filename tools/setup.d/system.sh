# shellcheck shell=bash
# The system packages, from the distribution's own archive. Sourced by tools/setup; provides ensure_system_packages.

SYSTEM_PACKAGES=(
    build-essential                         # the engine's extensions are compiled here
    libzstd-dev                             # and link it
    python3 python3-dev python3-venv        # Debian's python3 alone has neither headers nor ensurepip
    ca-certificates                         # for pip
    fuse3                                   # fusermount3, and /etc/fuse.conf
    tini                                    # process 1 of a sandbox
    iproute2 slirp4netns                    # a sandbox's network, and its way out
)

ensure_system_packages() {
    if ! command -v dpkg-query apt-get >/dev/null; then
        fall_short "no apt here, so the system packages were not looked at" \
            "install what your distribution calls ${SYSTEM_PACKAGES[*]}"
        return
    fi
    local missing
    mapfile -t missing < <(not_installed "${SYSTEM_PACKAGES[@]}")
    if ((${#missing[@]} == 0)); then
        say "system" "all ${#SYSTEM_PACKAGES[@]} packages are there"
        return
    fi
    say "system" "installing ${missing[*]}"
    apt_install "${missing[@]}" || die_with_log "apt could not install: ${missing[*]}" \
        "run \`apt-get install ${missing[*]}\` by hand; on Ubuntu they need the universe component"
}

# not_installed PACKAGE…: those of them that dpkg does not have, one per line.
not_installed() {
    local installed
    installed=$(dpkg-query --show --showformat '${db:Status-Abbrev}${Package}\n' "$@" 2>/dev/null |
        sed -n 's/^ii *//p' || true)
    comm -23 <(printf '%s\n' "$@" | sort) <(sort <<<"$installed")
}

# The package lists are refreshed only where they are absent or so old that the archive has moved on: that is the
# slow part, and a machine that was set up before needs none of it.
apt_install() {
    quietly apt_get install --yes --no-install-recommends "$@" && return
    say "system" "refreshing apt's package lists"
    quietly apt_get update && quietly apt_get install --yes --no-install-recommends "$@"
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get --quiet "$@"
}

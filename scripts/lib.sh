# Shared by the scripts: what a fresh machine needs, and where what is built here lies.
# shellcheck shell=bash

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# Prints where cargo puts this checkout's kvhive, built or not.
built_kvhive() { # PROFILE
    local root target=${CARGO_TARGET_DIR:-target}
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    case $target in /*) ;; *) target=$root/$target ;; esac
    printf '%s/%s/kvhive' "$target" "$1"
}

# Installs a Debian package if the command it brings is missing.
need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 && return 0
    command -v apt-get >/dev/null 2>&1 || die "$1 is missing; install it (Debian: apt-get install $2)"
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null 2>&1 || die "$1 is missing; as root: apt-get install $2"
        sudo=(sudo)
    fi
    say "installing $2"
    "${sudo[@]}" apt-get update -qq >&2
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$2" >&2
}

# Finds or installs what building takes: a C compiler (for hash functions and zstd) and Rust.
need_build_tools() {
    need cc gcc
    need git git
    if ! command -v cargo >/dev/null 2>&1 && [ -r "${CARGO_HOME:-$HOME/.cargo}/env" ]; then
        # shellcheck disable=SC1091
        . "${CARGO_HOME:-$HOME/.cargo}/env"
    fi
    if ! command -v cargo >/dev/null 2>&1; then
        need rustup rustup
        rustup default stable >&2
    fi
}

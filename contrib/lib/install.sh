# What contrib/test and contrib/demo need, installed when it is missing: Debian's packages, a
# virtual environment in .venv, OpenSMTPD 7.6 in a directory of its own. To be sourced by bash, from
# the top of the tree. Nothing that is there already is changed, and nothing is ever removed.

PACKAGES=(opensmtpd rspamd opendkim-tools mmdebstrap python3-venv iproute2 openssl util-linux mandoc ca-certificates systemd)

say() { printf '== %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Why servers can't be installed and run here; empty if they can.
unfit_for_servers() {
    if [[ $(uname -s) != Linux || ! -e /etc/debian_version ]]; then
        echo "this is not Debian"
    elif [[ $EUID -ne 0 ]]; then
        echo "not root"
    elif ! unshare --mount --uts --propagation private true 2>/dev/null; then
        echo "no mount namespaces here (unshare failed)"
    fi
}

quiet_apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 \
        -o Acquire::Retries=3 "$@" </dev/null
}

is_installed() {
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# Install what is missing of PACKAGES. No service is started, and no other package removed: a
# machine with another mail server keeps it, and this fails.
ensure_packages() {
    local missing=() package policy=/usr/sbin/policy-rc.d status=0
    for package in "${PACKAGES[@]}"; do
        is_installed "$package" || missing+=("$package")
    done
    if ((${#missing[@]})) || [[ -z $(apt-get indextargets --format '$(SITE)' 'Created-By: Packages') ]]; then
        say "apt-get update"
        quiet_apt update >/dev/null
    fi
    ((${#missing[@]})) || return 0
    say "apt-get install ${missing[*]}"
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    else
        policy=
    fi
    quiet_apt install --no-install-recommends --no-remove "${missing[@]}" >/dev/null || status=$?
    [[ -z $policy ]] || rm -f "$policy"
    return "$status"
}

# The first Python that is new enough, as a path: the system's, which smtpd's filters run with.
find_python() {
    local name
    for name in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# .venv with this project, editable, and the extras named in $1 ("test").
ensure_venv() {
    local python wanted stamp=.venv/installed-for
    python=$(find_python) || die "no Python 3.11 or newer with venv; hint: apt-get install python3-venv"
    mkdir -p .cache
    (
        flock 9
        wanted="$1 $("$python" -VV | tr '\n' ' ') $(sha256sum <pyproject.toml) $PWD"
        if [[ -e $stamp && $(<"$stamp") == "$wanted" ]] && .venv/bin/python -c 'import bridge, pytest' 2>/dev/null; then
            exit 0
        fi
        say "virtual environment .venv, $("$python" -V)"
        if ! .venv/bin/python -c '' 2>/dev/null; then
            "$python" -m venv --clear .venv
        fi
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$1]"
        printf '%s' "$wanted" >"$stamp"
    ) 9>.cache/venv.lock
}

# OpenSMTPD 7.6, of Debian trixie; half a minute when it is not in the cache yet.
ensure_trixie() {
    say "OpenSMTPD 7.6"
    .venv/bin/python -m tests.live.trixie >/dev/null
}

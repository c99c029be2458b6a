#!/usr/bin/env bash
# Installs what the tests need and runs all of them.
#
#   ./test.sh            everything
#   ./test.sh ARGS...    ARGS go to `cargo test --workspace --locked`, e.g. ./test.sh -- raft
#
# Needs a shell, cargo (rustup) and a C compiler. What is missing is installed: the crates and the
# toolchain of rust-toolchain.toml by cargo and rustup; a compiler for the guests by
# `wasm-apps/build`; kubectl, docker-registry, skopeo and tzdata from Debian's packages, when run as root on Debian
# or Ubuntu, otherwise a sentence says what to install. Afterwards plain `cargo test --workspace` passes too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf 'test.sh: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

case "${1-}" in -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit ;; esac

command -v cargo >/dev/null || fail "cargo is missing: install it with rustup, see https://rustup.rs"
command -v cc >/dev/null || fail "a C compiler is missing: install gcc or clang (Debian: apt-get install gcc libc6-dev)"
if ! complaint=$(cargo --version 2>&1); then
  # rustup could not fetch the targets that rust-toolchain.toml names. The toolchain itself may do:
  # the guests can be built without them.
  export RUSTUP_AUTO_INSTALL=0
  cargo --version >/dev/null 2>&1 || fail "the toolchain of rust-toolchain.toml cannot be used: ${complaint%%$'\n'*}"
fi

say "1/3 guests"
wasm-apps/build

say "2/3 kubectl, docker-registry, skopeo and tzdata"
log=$(mktemp)
readonly log
trap 'rm -f "$log"' EXIT
# Installs the first package of the list that there is; fails with the sentence given first.
install() {
  local hint=$1 package
  shift
  [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null || fail "$hint"
  apt-get update -q >"$log" 2>&1 || true
  for package in "$@"; do
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
      -o DPkg::Lock::Timeout=300 "$package" >>"$log" 2>&1 && return
  done
  tail -n 20 "$log" >&2
  fail "$hint"
}
# Debian 13 and later call the package kubectl, earlier ones kubernetes-client.
command -v kubectl >/dev/null || install \
  "kubectl is missing, and the end-to-end tests need it: see https://kubernetes.io/docs/tasks/tools/" \
  kubectl kubernetes-client
command -v docker-registry >/dev/null || install \
  "docker-registry is missing, and the end-to-end tests need it: Debian and Ubuntu have it as the package docker-registry" \
  docker-registry
command -v skopeo >/dev/null || install \
  "skopeo is missing, and the end-to-end tests need it: Debian and Ubuntu have it as the package skopeo" \
  skopeo
[[ -e /usr/share/zoneinfo/Asia/Tokyo ]] || install \
  "the zones of time are missing, and tests of CronJobs need them: Debian and Ubuntu have them as the package tzdata" \
  tzdata
say "using $(command -v kubectl): $(kubectl version --client 2>/dev/null | head -n 1)"

say "3/3 cargo test (the first time, compiling takes minutes)"
cargo test --workspace --locked "$@"
say "all tests passed in $((SECONDS / 60)) min $((SECONDS % 60)) s"

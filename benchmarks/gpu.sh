#!/usr/bin/env bash
# Optimizer steps on this machine's GPU, in six minutes and without a network:
# OUT/bench_card.json. In the environment, paths from the top of the checkout:
#   PYTHON  an interpreter; python3 unless given
#   WHEELS  a folder of wheels to install from, made on a machine like this one by
#           `pip wheel --wheel-dir WHEELS . 'jax[cuda12]'`; what PYTHON has already may
#           be missing. Without it PYTHON must have JAX and Optax.
#   OUT     the folder of the result; build/gpu unless given
#   BUDGET  seconds of measuring; 330 unless given
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
  # A machine for computing may lack ensurepip: PYTHON's own pip installs.
  "$python" -m venv --clear --system-site-packages --without-pip .venv-gpu
  pip=("$python" -m pip --python .venv-gpu/bin/python)
  python=.venv-gpu/bin/python
  jax='jax[cuda12]'
  if "$python" -c 'import jax' 2>/dev/null; then jax=jax; fi
  "${pip[@]}" install --quiet --disable-pip-version-check --no-index \
    --find-links "$WHEELS" "$jax" optaxtricks
fi
if ! "$python" -c 'import jax, optax' 2>/dev/null; then
  echo "gpu.sh: $python has no JAX or no Optax; name another PYTHON, or WHEELS" >&2
  exit 1
fi
exec "$python" -m benchmarks.bench_card --gpu --budget "${BUDGET:-330}" \
  --out "${OUT:-build/gpu}"

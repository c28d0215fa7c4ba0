# Lets MindSpore find the CUDA libraries of requirements-gpu.txt that are installed for `python` (or PYTHON):
#     source scripts/gpu_env.sh
# Only programs that use MindSpore without latte need it; latte finds these libraries itself.
# shellcheck shell=bash

_list='import glob, importlib.util as u
s = u.find_spec("nvidia")
print(":".join(sorted(p for f in (s.submodule_search_locations if s else []) for p in glob.glob(f + "/*/lib"))))'
_folders=$("${PYTHON:-python}" -c "$_list")
if [[ -n "$_folders" ]]; then
    export LD_LIBRARY_PATH=$_folders${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    CUDA_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/cuda" && pwd) # its nvcc only prints a version
    export CUDA_HOME
else
    echo "error: ${PYTHON:-python} has no CUDA libraries; pip install -r requirements-gpu.txt" >&2
fi
unset _list _folders

# For programs that use MindSpore on a GPU without latte, which finds these libraries by itself:
#     source scripts/gpu_env.sh
# Puts the libraries of requirements-gpu.txt, as installed for `python` (or PYTHON), where MindSpore looks for them.
# shellcheck shell=bash

_list='import glob, importlib.util as u
s = u.find_spec("nvidia")
print(":".join(sorted(p for f in (s.submodule_search_locations if s else []) for p in glob.glob(f + "/*/lib"))))'
_folders=$("${PYTHON:-python}" -c "$_list")
if [[ -n "$_folders" ]]; then
    export LD_LIBRARY_PATH=$_folders${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    CUDA_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/cuda" && pwd) # only an nvcc that says its version, see there
    export CUDA_HOME
else
    echo "error: ${PYTHON:-python} has no CUDA libraries; pip install -r requirements-gpu.txt" >&2
fi
unset _list _folders

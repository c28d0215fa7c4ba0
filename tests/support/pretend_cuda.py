"""CUDA libraries that compute nothing, for tests of what MindSpore does on a machine with a GPU up to that.

MindSpore's plugin then starts, chooses a GPU kernel for each operation of a graph, and plans its memory: an operation
without a kernel is an error, as with a card. What comes back from the pretended card is zero.
"""

import re
import subprocess
from pathlib import Path

from latte.runtime import cuda

OPERATIONS = cuda.PLUGIN.parent / "gpu" / "libcuda_ops.so.11"  # MindSpore's own kernels
NAMES = re.compile(r"(cu[A-Z]|cuda[A-Z]|cublas|cudnn|cufft|curand|cusolver|cusparse|nvrtc|__cuda)\w*")
# What gives more back than "success". The numbers of the card's properties are places in CUDA 11's cudaDeviceProp.
ANSWERS = {
    r"cudaGetDeviceCount|cuDeviceGetCount": "(int *n) { *n = 1; return 0; }",
    r"cuDriverGetVersion": "(int *n) { *n = 12040; return 0; }",
    r"cudaMalloc|cudaHostAlloc": "(void **p, size_t n) { *p = calloc(1, n); return 0; }",
    r"cudaMemGetInfo": "(size_t *f, size_t *t) { *f = *t = 8ul << 30; return 0; }",
    r"cudaMemcpy(Async)?": """(void *d, void *s, size_t n, int kind) {
        kind == 2 ? memset(d, 0, n) : memcpy(d, s, n); return 0; }""",
    r"cudaMemset(Async)?": "(void *d, int v, size_t n) { memset(d, v, n); return 0; }",
    r"cudaGetDeviceProperties": """(char *p) {
        memset(p, 0, 712); strcpy(p, "pretended"); *(size_t *)(p + 288) = 8ul << 30; *(size_t *)(p + 296) = 49152;
        int *n = (int *)(p + 304); n[0] = 65536; n[1] = 32; n[4] = n[5] = n[6] = 1024; n[7] = 64; n[8] = 1 << 30;
        n[9] = n[10] = 65535; n[14] = 8; n[15] = 6; n[21] = 80; return 0; }""",
    r"\w*GetError(String|Name)": '() { return (long)"pretended"; }',
    r"cudnn\w*(Algorithm_v7|Find\w*Algorithm)": """(long a, long b, long c, long d, long e, int f, int *n, char *p) {
        *n = 1; memset(p, 0, 48); return 0; }""",
    r"cudnnGetConvolution\w*WorkspaceSize": """(long a, long b, long c, long d, long e, int f, size_t *n) {
        return *n = 0; }""",
    r"cudnnGet(Tensor|Filter)SizeInBytes": "(long a, size_t *n) { *n = 4096; return 0; }",
    r"cudnnGetReduction\w*": "(long a, long b, long c, long d, size_t *n) { *n = 16; return 0; }",
    r"\w*Create\w*": "(void **p) { *p = calloc(1, 4096); return 0; }",
}


def build(folder: Path) -> dict[str, str]:
    """Compile the libraries into a folder, and return the variables with which a process finds them."""
    asked = set(_symbols(cuda.PLUGIN, "--undefined-only"))
    inside = asked & set(_symbols(OPERATIONS, "--defined-only"))
    outside = asked | set(_symbols(OPERATIONS, "--undefined-only"))
    outside = {name for name in outside if NAMES.fullmatch(name)} | {"cuInit", "cuDriverGetVersion", "cuDeviceGetCount"}
    functions = [f"long {name}{_answer(name)}" for name in sorted(outside)]
    _compile(folder / "libcudart.so.11.0", functions)
    _compile(folder / cuda.DRIVER, functions)
    _compile(folder / OPERATIONS.name, [f"long {name}() {{ return 0; }}" for name in sorted(inside)])
    for library in cuda.LIBRARIES:
        if not (folder / Path(library).name).exists():
            _compile(folder / Path(library).name, [])
    return {"LD_LIBRARY_PATH": str(folder), "LD_PRELOAD": str(folder / OPERATIONS.name)}


def _answer(name: str) -> str:
    return next((body for names, body in ANSWERS.items() if re.fullmatch(names, name)), "() { return 0; }")


def _symbols(library: Path, which: str) -> list[str]:
    listed = subprocess.run(["nm", "-D", which, str(library)], capture_output=True, text=True, check=True).stdout
    return [line.split()[-1].split("@")[0] for line in listed.splitlines()]


def _compile(library: Path, functions: list[str]) -> None:
    code = "\n".join(["#include <stdlib.h>", "#include <string.h>", *functions])
    command = ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=code, text=True, check=True)

"""What is said of arguments of diffusers that have no place here; docs/from-diffusers.md has the whole table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latte.config.parser import nearest
from latte.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

_NO_DOWNLOAD = "nothing is downloaded by itself: run `hf download`, and give the folder"
_ONE_MEMORY = "the network stays on one device; quantize, vae_slice and vae_tile save memory"
_FORMATS = "weights of every format are found by themselves"

LEFT_OUT = {  # of from_pretrained
    "cache_dir": _NO_DOWNLOAD,
    "force_download": _NO_DOWNLOAD,
    "local_files_only": _NO_DOWNLOAD,
    "mirror": _NO_DOWNLOAD,
    "proxies": _NO_DOWNLOAD,
    "revision": _NO_DOWNLOAD,
    "token": _NO_DOWNLOAD,
    "custom_pipeline": "no code is loaded from elsewhere",
    "custom_revision": "no code is loaded from elsewhere",
    "trust_remote_code": "no code is loaded from elsewhere",
    "load_connected_pipeline": "a pipeline is one folder",
    "output_loading_info": "weights are loaded strictly, and what does not fit is an error",
    "device_map": "give device_target",
    "max_memory": _ONE_MEMORY,
    "offload_folder": _ONE_MEMORY,
    "offload_state_dict": _ONE_MEMORY,
    "low_cpu_mem_usage": "weights are read from the file one at a time anyway",
    "disable_mmap": "weights are read from the file one at a time anyway",
    "use_safetensors": _FORMATS,
    "use_flashpack": _FORMATS,
    "use_onnx": _FORMATS,
    "variant": _FORMATS,
    "dduf_file": "unpack it and give the folder",
    "provider": "this is MindSpore, not ONNX; give device_target",
    "provider_options": "this is MindSpore, not ONNX; give device_target",
    "sess_options": "this is MindSpore, not ONNX; give device_target",
    "quantization_config": 'give quantize="int8"',
    "transformer": "LattePipeline(net, codec, prompts) takes networks that are loaded",
    "text_encoder": "LattePipeline(net, codec, prompts) takes networks that are loaded",
    "tokenizer": "LattePipeline(net, codec, prompts) takes networks that are loaded",
    "scheduler": "set pipe.scheduler after loading, or give sampler at the call",
}

_ATTENTION = "attention needs little memory anyway; from_pretrained(enable_flash_attention=True) takes the fused kernel"
_DEVICE = 'from_pretrained(device_target="Ascend") chooses the device, and the network stays there'
ELSEWHERE = {  # attributes and methods of a pipeline
    "to": _DEVICE,
    "enable_model_cpu_offload": _DEVICE,
    "enable_sequential_cpu_offload": _DEVICE,
    "enable_attention_slicing": _ATTENTION,
    "enable_xformers_memory_efficient_attention": _ATTENTION,
    "vae": "it is pipe.codec.vae",
    "transformer": "it is pipe.net",
    "text_encoder": "pipe.prompts loads it when there are new prompts",
    "tokenizer": "it belongs to pipe.prompts",
    "encode_prompt": "pipe.prompts.encode([text, ...]) returns arrays",
    "components": "they are pipe.net, pipe.codec and pipe.prompts",
    "config": "the network's is pipe.net.config",
    "device": "repr(pipe) begins with it",
    "dtype": "that of the network is pipe.net.dtype",
    "save_lora_weights": "tools/t2v_export.py --lora_only writes the adapters of a training",
}


def missing_attribute(name: str, known: Iterable[str]) -> AttributeError:
    """Return the error for an attribute that a pipeline does not have, with what takes its place."""
    if name in ELSEWHERE:
        return AttributeError(f"a pipeline has no attribute {name!r} here: {ELSEWHERE[name]}")
    return AttributeError(f"a pipeline has no attribute {name!r}; the nearest is {nearest(name, known)!r}")


def unknown_argument(function: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for an argument that a function does not have, with what takes its place."""
    if function == "from_pretrained" and name in LEFT_OUT:
        return UserError(f"from_pretrained has no argument {name!r}: {LEFT_OUT[name]}")
    return UserError(f"{function} has no argument {name!r}; the nearest is {nearest(name, known)!r}")

"""Convert a text-to-video folder as diffusers writes it between safetensors, MindSpore and PyTorch, or to int8.

The folder holds model_index.json, transformer, vae, text_encoder, tokenizer, scheduler, and maybe vae_temporal_decoder.

python tools/t2v_converter.py --source models/Latte-1 --target models/Latte-1-ckpt --format ckpt
"""

from __future__ import annotations

import jsonargparse

from latte.conversion import FORMS, convert_folder
from latte.errors import run_main
from latte.quantize import KINDS


def main() -> None:
    """Read and check every component, write them into a new folder."""
    text, _, example = __doc__.strip().rpartition("\n\n")
    parser = jsonargparse.ArgumentParser(description=text, epilog=f"Example: {example}")
    parser.add_argument("--source", type=str, required=True, help="folder with a model_index.json")
    parser.add_argument("--target", type=str, required=True, help="folder to write; must not be there, or be empty")
    parser.add_argument("--format", choices=FORMS, default="ckpt", help="of the weights; ckpt is MindSpore's")
    parser.add_argument("--quantize", choices=KINDS, help="hold the matrices of transformer and text_encoder as int8")
    parser.add_argument("--components", type=str, help="only these, such as transformer,vae; without it, all")
    parser.add_argument("--dry_run", action="store_true", help="check the source, say what would be written, and stop")
    options = parser.parse_args()
    chosen = (options.source, options.target, options.format, options.quantize, options.components, options.dry_run)
    print("\n".join(convert_folder(*chosen)))


if __name__ == "__main__":
    run_main(main)

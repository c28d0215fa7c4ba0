"""Convert weights between PyTorch, MindSpore and safetensors, in any direction."""

from __future__ import annotations

import jsonargparse

from latte.components.convert import FORMS, check_target, convert, convert_folder, converter_parser
from latte.components.loading import read
from latte.components.quantize import KINDS

NETWORK = """Convert the weights of a Latte network between PyTorch, MindSpore and safetensors, in any direction.

python tools/latte_converter.py --source models/skytimelapse.pt --target models/skytimelapse.ckpt
"""
VAE = """Convert an autoencoder (VAE) between PyTorch, MindSpore and safetensors, in any direction.

The source is a file with the names of diffusers or of latent-diffusion, a diffusers folder, or a whole Stable Diffusion
checkpoint; the target has the names of diffusers.

python tools/vae_converter.py --source models/sd-vae-ft-mse --target models/sd-vae-ft-mse.ckpt
"""
FOLDER = """Convert a text-to-video folder of diffusers between safetensors, MindSpore and PyTorch, or to int8.

The folder holds model_index.json, transformer, vae, text_encoder, tokenizer, scheduler, and maybe vae_temporal_decoder.

python tools/t2v_converter.py --source models/Latte-1 --target models/Latte-1-ckpt --format ckpt
"""


def main_network() -> None:
    """Read, check against the network of the sizes found, write."""
    parser = converter_parser(NETWORK)
    parser.add_argument(
        "--weights", choices=("ema", "model"), help="which of two sets; without it, ema where there is one"
    )
    parser.add_argument("--num_heads", type=int, help="attention heads, if the width is not an official one's")
    options = parser.parse_args()
    check_target(options.source, options.target)
    found = read(options.source, "latte", weights=options.weights, num_heads=options.num_heads)
    print(convert(found, options.target, options.dry_run))


def main_vae() -> None:
    """Read, check against the autoencoder of the sizes found, write."""
    parser = converter_parser(VAE)
    parser.add_argument("--norm_num_groups", type=int, help="groups of the norms, if not 32 and no config.json says it")
    options = parser.parse_args()
    check_target(options.source, options.target)
    found = read(options.source, "autoencoder", norm_num_groups=options.norm_num_groups)
    print(convert(found, options.target, options.dry_run))


def main_folder() -> None:
    """Read and check every component, write them into a new folder."""
    text, _, example = FOLDER.strip().rpartition("\n\n")
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

"""Convert an autoencoder (VAE) between PyTorch, MindSpore and safetensors, in any direction.

The source is a file with the names of diffusers or of latent-diffusion, a diffusers folder, or a whole Stable Diffusion
checkpoint; the target has the names of diffusers.

python tools/vae_converter.py --source models/sd-vae-ft-mse --target models/sd-vae-ft-mse.ckpt
"""

from __future__ import annotations

from latte.errors import run_main
from latte.models.autoencoder import AutoencoderConfig, AutoencoderKL
from latte.weights.convert import check_target, convert, converter_parser
from latte.weights.files import read_state_dict
from latte.weights.loading import infer_vae_config


def main() -> None:
    """Read, check against the autoencoder of the sizes found, write."""
    parser = converter_parser(__doc__)
    parser.add_argument("--norm_num_groups", type=int, help="groups of the norms, if not 32 and no config.json says it")
    options = parser.parse_args()
    check_target(options.source, options.target)
    state = read_state_dict(options.source)
    config = infer_vae_config(state.tensors, state.metadata, options.norm_num_groups, options.source)
    net = AutoencoderKL(AutoencoderConfig(**config), seed=None)  # memory that is never touched
    print(convert(state, config, net, options.source, options.target, options.dry_run))


if __name__ == "__main__":
    run_main(main)

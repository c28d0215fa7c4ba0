"""Convert the weights of a Latte network between PyTorch, MindSpore and safetensors, in any direction.

python tools/latte_converter.py --source models/skytimelapse.pt --target models/skytimelapse.ckpt
"""

from __future__ import annotations

from latte.errors import UserError, run_main
from latte.models.latte import Latte, LatteConfig
from latte.weights.convert import check_target, convert, converter_parser
from latte.weights.files import read_state_dict
from latte.weights.loading import infer_latte_config


def main() -> None:
    """Read, check against the network of the sizes found, write."""
    parser = converter_parser(__doc__)
    parser.add_argument(
        "--weights", choices=("ema", "model"), help="which of two sets; without it, ema where there is one"
    )
    parser.add_argument("--num_heads", type=int, help="attention heads, if the width is not an official one's")
    options = parser.parse_args()
    check_target(options.source, options.target)
    state = read_state_dict(options.source, options.weights)
    config = infer_latte_config(state.tensors, state.metadata, options.num_heads, options.source)
    if options.num_heads not in (None, config["num_heads"]):
        raise UserError(f"{options.source} says that it has {config['num_heads']} heads; leave --num_heads out")
    net = Latte(LatteConfig(**config), seed=None)  # memory that is never touched
    print(convert(state, config, net, options.source, options.target, options.dry_run))


if __name__ == "__main__":
    run_main(main)

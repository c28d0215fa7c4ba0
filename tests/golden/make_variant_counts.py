"""Print the parameters and multiplications of all sizes of the paper's variants, the table of docs/train.md.

    python tests/golden/make_variant_counts.py

Parameters are without position embeddings, as the paper has them; multiplications are those in the blocks' products,
attention included, of a pass over 16 frames of 256 x 256 pixels.
"""

from __future__ import annotations

from latte.models.latte import SIZES, LatteConfig, named_sizes


def counts(size: str, variant: int) -> tuple[float, float]:
    """Return the parameters, in millions, and the multiplications, in billions."""
    config = LatteConfig(**named_sizes(f"Latte-{size}/2", variant), variant=variant)
    frames, patches, width = config.num_frames, config.grid[0] * config.grid[1], config.hidden_size
    tokens, both = frames * patches, variant > 2
    blocks = config.depth * (4 * (1 + both) + 8) * width**2 * tokens
    pairs = 2 * tokens * width * (patches + frames) * (config.depth if both else config.depth / 2)
    parameters = config.parameter_count - width * (patches + frames)
    return parameters / 1e6, (blocks + pairs) / 1e9


def main() -> None:
    """Print the table."""
    print(f"| variants | {' | '.join(f'{size}/2' for size in SIZES)} |\n|---|{'---|' * len(SIZES)}")
    for name, variant in (("1 and 2", 1), ("3 and 4", 3)):
        cells = ["{:.2f} M, {:.1f} G".format(*counts(size, variant)) for size in SIZES]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

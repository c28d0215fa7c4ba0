"""Predict what a training or a sampling takes on a card: operations, launches, memory, seconds, before there is one.

    python tools/estimate.py -c configs/training/sky_video.yaml --card 910B3 --cards 8
    python tools/estimate.py -c configs/inference/t2v.yaml --card A3 --num_frames 32
    python tools/estimate.py --residuals

All further options are those of train.py or sample.py, whichever the configuration is of. docs/estimate.md says what
the predictions rest on; --residuals compares them with what others have published.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from latte.config import OptionError, Options, SampleConfig, TrainConfig, in_range, option, parse_config
from latte.config.parser import INCLUDE
from latte.config.values import fit
from latte.config.yaml_file import read_yaml
from latte.errors import UserError
from latte.io import resources
from latte.io.json_files import exists

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclasses.dataclass(kw_only=True)
class EstimateOptions(Options):
    """Estimate"""

    card: str | None = option(
        None, "card to predict for: 910B, 910B3, 910B4, 910A, A3, H100, H200, or cpu, this machine"
    )
    cards: int = option(1, "cards, each with a process of its own")
    hosts: int = option(1, "machines that the cards are in")
    scaling: bool = option(
        False, "predict one video, or one batch, on 1 to 64 cards, by sequence_parallel and cfg_parallel, and stop"
    )
    residuals: bool = option(False, "compare the model with published speeds, and stop")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "cards", 1)
        in_range(self, "hosts", 1)
        if self.cards % self.hosts:
            raise OptionError("hosts", self.hosts, f"a divisor of the {self.cards} cards")


@dataclasses.dataclass(kw_only=True)
class OfTraining(EstimateOptions, TrainConfig):
    """Options of a training, and the card."""


@dataclasses.dataclass(kw_only=True)
class OfSampling(EstimateOptions, SampleConfig):
    """Options of a sampling, and the card."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the predictions."""
    words = list(sys.argv[1:] if argv is None else argv)
    sampling = samples(words)
    cfg = parse_config(OfSampling, words, __doc__) if sampling else parse_config(OfTraining, words, __doc__)
    if cfg.residuals:
        from latte.inference import published

        print(published.report())
        return
    if not cfg.card:
        raise UserError("--card is not given; it is the card to predict for, such as 910B3, H100 or cpu")

    from latte.inference import estimate, scaling  # after the options: MindSpore takes seconds to import
    from latte.training.start import complete

    if cfg.scaling:
        print(scaling.report(cfg, cfg.card))
        return
    if isinstance(cfg, OfSampling):
        config, vae, assumed = estimate.stored(cfg)
        if assumed:
            print(assumed)
        work = estimate.sampling(cfg, config, vae)
    else:
        start = cfg.pretrained_model_path
        whole = complete(cfg) if start and exists(resources.find(start)) else cfg
        work = estimate.training(whole, *estimate.described(whole))
    print(estimate.report(work, cfg.card, cfg.cards, cfg.hosts))


def samples(words: Sequence[str]) -> bool:
    """Return whether the configuration that a command line names is of a sampling; raises UserError as reading does."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", default=None)
    found, _ = parser.parse_known_args(words)
    path = resources.find_config(found.config) if found.config else None
    keys = _keys(path, ()) if path and exists(path) else set()
    keys |= {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    own, other = ({field.name for field in dataclasses.fields(cls)} for cls in (SampleConfig, TrainConfig))
    return bool(keys & (own - other)) and not keys & (other - own)


def _keys(path: Path, above: tuple[Path, ...]) -> set[str]:
    """Return the names of the options in a YAML file and in those that it includes."""
    values, _ = read_yaml(path)
    inner = [path.parent / name for name in fit(values.get(INCLUDE, []), list[str])]
    return set(values).union(*(_keys(each, (*above, path)) for each in inner if each not in (*above, path)))

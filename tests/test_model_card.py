"""Every figure of models/demo/README.md is that of a file beside it."""

import csv
import re

import pytest
import yaml
from support.golden_values import ROOT

from latte.components.loading import read
from latte.data.demo import CLASSES

DEMO = ROOT / "models" / "demo"
CARD = (DEMO / "README.md").read_text(encoding="utf-8")
COLUMNS = {"fvd": 0, "fvd_low": 0, "fvd_high": 0, "kvd": 1, "flicker": 2}


def rows(name):
    return list(csv.DictReader((DEMO / name).open(encoding="utf-8")))


def test_the_table_of_the_distance_is_the_curve():
    said = re.findall(r"^\| (\d+) \| (\d+) \((\d+) to (\d+)\) \| ([\d.]+) \| ([\d.]+) \|$", CARD, re.MULTILINE)
    measured = [
        (row["step"], *(f"{float(row[name]):.{digits}f}" for name, digits in COLUMNS.items()))
        for row in rows("fvd64_16f.csv")
    ]
    assert said == measured and f"real clips: {float(rows('fvd64_16f.csv')[0]['real_flicker']):.2f}" in CARD


def test_losses_and_the_autoencoder_are_as_measured():
    first, *_, last = rows("eval.csv")
    assert f"from {float(first['loss']):.3f} to {float(last['loss']):.3f}" in CARD
    last = rows("vae.csv")[-1]
    assert f"with {float(last['held_out_psnr']):.1f} dB" in CARD and f"| {last['step']} | | |" in CARD
    assert f"{int(last['seconds']) / 60:.0f} min" in CARD


def test_sizes_are_those_of_the_weights():
    network, vae = read(DEMO / "latte.safetensors"), read(DEMO / "vae.safetensors", "autoencoder")
    fixed = sum(network.tensors[name].size for name in ("pos_embed", "temp_embed"))
    total = sum(values.size for values in network.tensors.values())
    assert f"| {total - fixed:,}, and {fixed:,} of fixed" in CARD
    assert f"| {sum(values.size for values in vae.tensors.values()):,} |" in CARD
    config = network.config
    assert f"{config.depth} blocks, width {config.hidden_size}, {config.num_heads} heads, patches of 4 x 4" in CARD
    assert config.patch_size == 4 and f"latents of {config.num_frames} frames, 4 x 16 x 16" in CARD
    assert f"{vae.config.scaling_factor}" in CARD
    for name in ("latte", "vae"):
        assert f"{(DEMO / f'{name}.safetensors').stat().st_size / 1e6:.1f} MB" in CARD


@pytest.mark.parametrize("folder, steps, rate", [("first", 4000, "7e-4"), (".", 5000, "4e-4")])
def test_settings_are_those_of_the_run(folder, steps, rate):
    options = yaml.safe_load((DEMO / folder / "config.yaml").read_text(encoding="utf-8"))
    assert (int(options["max_steps"]), float(options["start_learning_rate"])) == (steps, float(rate))
    assert f"| {steps} | {rate}, {options['scheduler']} |" in CARD
    assert int(options["train_batch_size"]) == 8 and "batches of 8 videos" in CARD
    assert float(options["ema_decay"]) == 0.999 and "EMA 0.999" in CARD


def test_classes_have_the_numbers_of_their_folders():
    assert ", ".join(f"{k} is {name}" for k, name in enumerate(sorted(CLASSES))) in CARD


def test_what_the_card_names_is_there():
    names = set(re.findall(r"`([\w./]+\.(?:csv|png|txt|yaml|safetensors|py))`|\((?:\.\./)*([\w./]+)\)", CARD))
    for name in filter(None, (name for pair in names for name in pair)):
        assert any((folder / name).exists() for folder in (DEMO, ROOT, ROOT / "configs" / "training")), name

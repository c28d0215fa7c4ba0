"""Every option in the tables for users of other implementations is one of ours, with a value that it takes."""

import re
import typing

import pytest
from support.golden_values import ROOT

from latte.commands.main import COMMANDS
from latte.config import CacheConfig, SampleConfig
from latte.config.values import fit
from latte.config.yaml_file import read_yaml

HINTS = {**typing.get_type_hints(CacheConfig), **typing.get_type_hints(SampleConfig)}
PAGE = (ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")
ROWS = [line.split("|") for line in PAGE.splitlines() if line.startswith("| `")]
# What the tutorial's and the official configuration files set; docs/migrate.md must say what became of each.
TUTORIAL = """device_target use_parallel mode jit_level enable_flash_attention use_recompute dataset_sink_mode sink_size
    patch_embedder model_name condition num_classes image_size num_frames checkpoint vae_checkpoint sd_scale_factor
    sampling_steps guidance_scale ddim_sampling seed num_samples start_learning_rate scheduler warmup_steps
    train_batch_size gradient_accumulation_steps optim_eps epochs use_ema clip_grad max_grad_norm init_loss_scale
    loss_scaler_type resume ckpt_save_interval ckpt_max_keep step_mode pretrained_model_path data_folder sample_stride
    use_fp16 max_device_memory data_config_file
    dataset_name train_data_type save_data_type scale_window loss_scale_factor precision_mode log_level profile optim
    callback_size group_strategy drop_overflow_update clip_checkpoint enable_modelarts"""
OFFICIAL = """data_path pretrained_model_path results_dir pretrained model frame_interval fixed_spatial extras
    learning_rate ckpt_every clip_max_norm start_clip_iter local_batch_size max_train_steps global_seed log_every
    lr_warmup_steps
    resume_from_checkpoint gradient_accumulation_steps use_compile mixed_precision gradient_checkpointing ckpt
    enable_xformers_memory_efficient_attention save_img_path use_fp16 sample_method num_sampling_steps cfg_scale
    run_time num_sample sample_names negative_name per_proc_batch_size num_fvd_samples"""


def options(cell):
    return [text.partition(": ") for text in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1].strip())
def test_the_option_that_takes_its_place_is_there(row, tmp_path):
    assert len(row) == 5 and row[3].strip()
    for name, colon, value in options(row[2]):
        assert name in HINTS, name
        if colon:
            (tmp_path / "a.yaml").write_text(f"{name}: {value}")
            fit(read_yaml(str(tmp_path / "a.yaml"))[0][name], HINTS[name])


def test_options_with_the_same_name_are_there():
    same = PAGE.partition("same name and meaning:")[2].partition("\n\n")[0]
    assert len(options(same)) > 20 and all(name in HINTS for name, _, _ in options(same))


@pytest.mark.parametrize("section, names", [("## From the tutorial", TUTORIAL), ("## From official", OFFICIAL)])
def test_no_option_of_theirs_is_missing(section, names):
    text = PAGE.partition(section)[2].partition("\n## ")[0]
    left = {name for line in text.splitlines() for name, _, _ in options(line.split("|")[1] if "|" in line else line)}
    assert not {*names.split()} - left


TROUBLE = [
    line.split("|")
    for line in (ROOT / "docs" / "troubleshooting.md").read_text("utf-8").splitlines()
    if line.startswith("| ")
]
WORDS = r"[A-Z_]+(=\d+)?|--\S+|\S+[./]\S*|hccn_tool|dpmpp_2m|ddpm|bf16|fp16|pip install .*"  # that are no options


@pytest.mark.parametrize("row", TROUBLE[1:], ids=lambda row: row[1].strip()[:40])
def test_what_helps_is_an_option_that_is_there(row, tmp_path):
    assert len(row) == 5 and row[3].strip()
    for name, colon, value in options(row[3]):
        if colon and name in HINTS:
            (tmp_path / "a.yaml").write_text(f"{name}: {value}")
            fit(read_yaml(str(tmp_path / "a.yaml"))[0][name], HINTS[name])
        elif name.startswith("latte "):
            assert name.split()[1] in COMMANDS, name
        else:
            assert name in HINTS or re.fullmatch(WORDS, name), name

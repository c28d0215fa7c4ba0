"""The folder of a training run as a checkpoint."""

import json

import pytest
from support.golden_values import FIXTURES

from latte import LattePipeline
from latte.commands import sample
from latte.components import runs
from latte.errors import UserError
from latte.weights.files import read_state_dict, write_state_dict

CONFIG = json.dumps({"num_heads": 4})


@pytest.fixture
def run(tmp_path):
    """Return a run's folder with two checkpoints of a tiny network."""
    folder = tmp_path / "outputs" / "my run"
    (folder / "ckpt").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"vae_checkpoint: {FIXTURES / 'vae.bin'}\nsd_scale_factor: 0.5\nold_option: 3\n"
    )
    weights = read_state_dict(FIXTURES / "latte_class.pt")
    for name in ("ema-00000002.ckpt", "model-00000004.ckpt", "ema-00000004.ckpt"):
        write_state_dict(folder / "ckpt" / name, weights.tensors, weights.metadata | {"config": CONFIG})
    (folder / "ckpt" / "state-00000004.safetensors").touch()
    return folder


def test_a_run_gives_its_newest_ema_weights_its_autoencoder_and_its_scale(run):
    for named in (run, run / "ckpt", run / "ckpt" / "ema-00000004.ckpt"):
        parts = runs.find(named)
        assert parts.network == run / "ckpt" / "ema-00000004.ckpt" and parts.vae == FIXTURES / "vae.bin"
        assert parts.scale_factor == 0.5
    assert runs.find(run / "ckpt" / "ema-00000002.ckpt").network.name == "ema-00000002.ckpt"
    assert runs.find(run, vae="other.ckpt").vae.name == "other.ckpt"
    assert runs.parts_of_run(run.parent) is None
    assert LattePipeline.from_pretrained(run).codec.scale_factor == 0.5


def test_a_resume_with_another_autoencoder_path_counts(run):
    again = run / "config-from-step-00000004.yaml"
    again.write_text((run / "config.yaml").read_text().replace("sd_scale_factor: 0.5", "sd_scale_factor: 0.25"))
    assert runs.find(run).scale_factor == 0.25
    again.unlink()
    assert runs.find(run).scale_factor == 0.5


def test_sample_takes_the_folder_of_a_run(run, capsys):
    sample.main(["--checkpoint", str(run), "--dry_run"])
    assert "1 videos of 4 frames, 16 x 16 pixels, 250 ddpm steps, guidance 1" in capsys.readouterr().out


def test_what_is_wrong_with_a_run_is_said(run):
    with pytest.raises(UserError, match="is the state that a run resumes from, not weights; name the run's folder"):
        runs.find(run / "ckpt" / "state-00000004.safetensors")
    config = run / "config.yaml"
    config.write_text("vae_checkpoint: nowhere.ckpt\n")
    with pytest.raises(UserError, match="names the autoencoder nowhere.ckpt, which does not exist here"):
        runs.find(run)
    config.write_text("model_name: LatteT2V\npretrained_model_path: models/Latte-1\n")
    with pytest.raises(UserError, match=r"t2v_export.py --source .*ema-00000004.ckpt --base models/Latte-1"):
        runs.find(run)
    for file in (run / "ckpt").glob("*.ckpt"):
        file.unlink()
    with pytest.raises(UserError, match="has no weights in ckpt yet"):
        runs.find(run)

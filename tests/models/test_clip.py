"""The text encoder of CLIP against transformers', and networks that are trained and sampled with its words."""

import json
import logging
import shutil

import mindspore as ms
import numpy as np
import pytest
from support import runs
from support.golden_values import FIXTURES, error, recorded

from latte import LattePipeline
from latte.components import text_encoder
from latte.components.loading import load, read
from latte.components.text_encoder import load_text_encoder
from latte.config import CacheConfig, SampleConfig, parse_config
from latte.data.cache import TEXT
from latte.errors import UserError
from latte.inference import videos
from latte.models.clip import ClipConfig, own_names
from latte.runtime import device
from latte.training.build import build
from latte.training.cache_maker import make_cache
from latte.weights.files import read_state_dict, write_state_dict
from latte.weights.match import CONFIG

FOLDER = FIXTURES / "clip"


@pytest.fixture(scope="module")
def encoder():
    return load_text_encoder(FOLDER, kind="clip")


@pytest.mark.parametrize("scope", ["block", "step", "none"])
def test_the_last_hidden_state(scope):
    data = recorded("clip/recorded")
    ids = ms.Tensor(data["input_ids"].astype(np.int32))
    with device.use({"step": "GPU"}.get(scope, "CPU"), graph_mode=scope != "none") as here:
        assert here.compile_scope == scope
        hidden = load(FOLDER, "clip")(ids, ms.Tensor(np.ones(ids.shape, np.int32)))
    assert hidden.dtype == ms.float32 and error(hidden, data["hidden"]) <= 1e-5


def test_half_precision_is_near():
    data = recorded("clip/recorded")
    ids = ms.Tensor(data["input_ids"].astype(np.int32))
    found = load(FOLDER, "clip", dtype="fp16")(ids, ids)
    assert found.dtype == ms.float32 and 1e-6 < error(found, data["hidden"]) <= 1e-2


def test_texts_with_their_capitals_and_their_end(encoder, caplog):
    """Padding is the mark of the end of a text, and a long text keeps that mark."""
    data = recorded("clip/recorded")
    texts = data["texts"].tolist()
    with caplog.at_level(logging.WARNING, "latte"):
        ids, mask = encoder.tokenize(texts)
    assert np.array_equal(ids, data["input_ids"]) and [*mask.sum(1)][2:] == [2, 77]
    assert "longer than 77 tokens" in caplog.text
    hidden, _ = encoder.encode([texts[1], texts[0], texts[1]])
    assert hidden.shape == (3, 77, 48) and error(hidden, data["hidden"][[1, 0, 1]]) <= 1e-5


def test_a_released_encoder_still_splits_texts():
    encoder = load_text_encoder(FOLDER, kind="clip")
    encoder.encode(["a"])
    encoder.release()
    assert encoder.tokenize(["the clouds"])[1].sum() > 2
    with pytest.raises(RuntimeError, match="was released"):
        encoder.encode(["a"])


def test_the_text_encoder_of_a_whole_clip():
    whole = read_state_dict(FOLDER).tensors
    own = own_names(whole)
    assert any(name.startswith("vision_model.") for name in whole) and all("vision" not in name for name in own)
    net = load(FOLDER, "clip")
    assert {parameter.name for parameter in net.get_parameters()} == set(own)
    assert net.config.parameter_count == sum(np.prod(p.shape) for p in net.get_parameters())
    assert ClipConfig().parameter_count == 123_060_480  # of ViT-L/14


def test_the_layout_of_stable_diffusion(tmp_path):
    """Two folders, with the weights of the text encoder alone and a flat configuration."""
    shutil.copytree(FOLDER, tmp_path / "tokenizer", ignore=shutil.ignore_patterns("*.bin", "config.json", "*.npz"))
    (tmp_path / "text_encoder").mkdir()
    own = own_names(read_state_dict(FOLDER).tensors)
    write_state_dict(tmp_path / "text_encoder/model.safetensors", own, {})
    described = json.loads((FOLDER / "config.json").read_text())["text_config"]
    (tmp_path / "text_encoder/config.json").write_text(json.dumps(described))
    hidden, _ = load_text_encoder(tmp_path, kind="clip").encode(["the clouds"])
    assert np.array_equal(hidden, load_text_encoder(FOLDER, kind="clip").encode(["the clouds"])[0])


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"hidden_act": "gelu"}, "activation gelu; only quick_gelu"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number from 1 to 256"),
        ({"num_attention_heads": 5}, "hidden_size 48 does not divide into 5"),
        ({"num_hidden_layers": 4}, "missing .*layers.3"),
        ({"intermediate_size": 80}, "mis-shaped .*fc1"),
    ],
)
def test_configurations_that_do_not_fit(changes, said, tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    text = {key: value for key, value in (config["text_config"] | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config | {"text_config": text}))
    with pytest.raises(UserError, match=said):
        read(folder, "clip")


def test_folders_that_are_missing_or_of_another_encoder(tmp_path):
    with pytest.raises(UserError, match="does not hold the folders tokenizer and text_encoder, or is no folder of"):
        load_text_encoder(tmp_path, kind="clip")
    with pytest.raises(UserError, match="holds a T5 text encoder, not a CLIP text encoder"):
        load_text_encoder(FIXTURES / "latte_t2v", kind="clip")


# From captions to videos of prompts.


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Return the folder of an encoder as wide as the condition of a Latte, of one block."""
    folder = tmp_path_factory.mktemp("clip")
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.bin", "*.npz"))
    words = len(json.loads((FOLDER / "vocab.json").read_text()))
    sizes = {"hidden_size": 768, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 12}
    config = ClipConfig(**sizes, vocab_size=words)
    rng = np.random.default_rng(0)
    net = load(FOLDER, "clip").__class__(config)
    tensors = {p.name: rng.normal(size=p.shape).astype(np.float32) / 28 for p in net.get_parameters()}
    described = json.dumps({**sizes, "vocab_size": words, "max_position_embeddings": 77})
    (folder / "config.json").write_text(described)
    write_state_dict(folder / "model.safetensors", tensors, {CONFIG: described})
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Return the options of a data set of four clips with captions."""
    root = runs.write_clips(tmp_path_factory.mktemp("clips") / "data")
    rows = [f"{name}/{k},{words}" for name, k, words in (("a", 0, "day"), ("b", 1, "night"), ("a", 2, "day"))]
    (root.parent / "t.csv").write_text("\n".join(["video,caption", *rows]) + "\n")
    given = {"data_layout": "csv", "csv_path": root.parent / "t.csv", "caption_column": "caption"}
    return given | {"data_folder": root, "condition": "text", "train_batch_size": 2}


@pytest.fixture(scope="module")
def run(clip, table, tmp_path_factory):
    """Return the folder of a training on captions."""
    return runs.train(**table, text_encoder_path=clip, output_path=tmp_path_factory.mktemp("run"), max_steps=2)


def test_a_training_gets_the_embedding_of_each_caption(clip, table, tmp_path):
    """As they are made at the start, and as a cache holds them; the null condition is that of the empty text."""
    expected, _ = load_text_encoder(clip, kind="clip").encode(["day", "night", ""])
    options = {**table, "text_encoder_path": clip, "output_path": tmp_path}
    dropped = build(runs.options(**options, class_dropout_prob=1.0)).source[0][-1]
    assert np.array_equal(dropped, expected[2])
    cached = {**options, "cache_folder": tmp_path / "cache", "cache_dtype": "fp32"}
    make_cache(parse_config(CacheConfig, runs.words(**cached)))
    for given in (options, cached):
        source = build(runs.options(**given, class_dropout_prob=0.0)).source
        for position in range(3):
            row = [0, 1, 0][source.dataset.sample(position).record]
            assert np.array_equal(source[position][-1], expected[row])


def test_a_cache_keeps_embeddings_until_its_encoder_changes(clip, table, tmp_path, monkeypatch):
    cached = {**table, "text_encoder_path": clip, "output_path": tmp_path, "cache_folder": tmp_path / "cache"}
    make_cache(parse_config(CacheConfig, runs.words(**cached)))
    made = (tmp_path / "cache" / TEXT).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(text_encoder, "load", None)
        make_cache(parse_config(CacheConfig, runs.words(**cached)))
    assert (tmp_path / "cache" / TEXT).read_bytes() == made
    other = shutil.copytree(clip, tmp_path / "other")
    net = read_state_dict(other).tensors
    changed = {name: np.asarray(values) * np.float32(2) for name, values in net.items()}
    config = json.loads((other / "config.json").read_text()) | {"layer_norm_eps": 1e-4}
    (other / "config.json").write_text(json.dumps(config))
    write_state_dict(other / "model.safetensors", changed, {})
    make_cache(parse_config(CacheConfig, runs.words(**{**cached, "text_encoder_path": other})))
    assert (tmp_path / "cache" / TEXT).read_bytes() != made


def test_prompts_make_what_their_embeddings_make(clip, run, tmp_path):
    """A run knows the folder of its text encoder; prompts, negative prompts and their embeddings make equal videos."""
    expected, _ = load_text_encoder(clip, kind="clip").encode(["night", "day"])
    pipe, rng = LattePipeline.from_pretrained(run), np.random.default_rng(0)
    for parameter in pipe.net.get_parameters():  # two steps have not taught it to listen
        parameter.set_data(ms.Tensor(parameter.asnumpy() + rng.normal(0, 0.1, parameter.shape).astype(np.float32)))
    given = {"num_inference_steps": 3, "sampler": "ddim", "guidance_scale": 3.0, "seed": 1, "output_type": "latent"}
    shown = pipe("night", negative_prompt="day", **given, progress=False).frames
    same = pipe(prompt_embeds=expected[:1], negative_prompt_embeds=expected[1:], **given, progress=False).frames
    assert np.array_equal(shown, same)
    assert not np.array_equal(shown, pipe("day", negative_prompt="day", **given, progress=False).frames)
    options = {"checkpoint": str(run), "sampling_steps": 3, "sampler": "ddim", "seed": 1, "output_path": str(tmp_path)}
    cfg = SampleConfig(**options, prompts=["night", "day"], guidance_scale=3.0, output_format=["png"])
    assert "GiB" in videos.dry_run(cfg)
    plan = videos.check(cfg)
    videos.run(cfg, videos.build_pipeline(cfg, plan), videos.find_targets(cfg, plan))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "video-0000-seed1-night",
        "video-0001-seed2-day",
    ]


@pytest.mark.parametrize(
    "options, said",
    [
        ({}, "give either --prompts or --text_embeddings"),
        ({"prompts": ["a"], "text_embeddings": "t.npz"}, "give either --prompts or --text_embeddings"),
        ({"prompts": ["a"], "text_encoder_path": "nowhere"}, "nowhere does not hold the folders tokenizer"),
        ({"prompts": ["a"], "text_encoder_path": FOLDER}, "is 48 wide, but .* takes 768"),
    ],
)
def test_words_that_cannot_be_understood(options, said, run):
    with pytest.raises(UserError, match=said):
        videos.check(SampleConfig(checkpoint=str(run), sampling_steps=2, **options))


def test_captions_without_an_encoder(clip, table, tmp_path):
    for given, said in (
        ({}, "neither text_encoder_path nor text_embeddings is set"),
        ({"text_encoder_path": FOLDER}, "is 48 wide, but the network takes 768"),
        ({"text_encoder_path": clip, "caption_column": "null"}, "the data has no captions"),
    ):
        with pytest.raises(UserError, match=said):
            build(runs.options(**{**table, **given}, output_path=tmp_path))

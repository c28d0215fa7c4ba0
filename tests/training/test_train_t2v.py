"""Training of the text-to-video network: PyTorch's gradients, what is trained and what not, caches, export, resume."""

import dataclasses
import json
import shutil

import mindspore as ms
import numpy as np
import pytest
from support.golden_values import FIXTURES, ROOT, error, recorded
from support.t2v import CLIPS, FOLDER, export, learned, options, outputs

from latte.components.loading import load_t2v
from latte.components.text_encoder import load_text_encoder
from latte.config import CacheConfig, TrainConfig, parse_config
from latte.data.cache import TEXT
from latte.data.demo import caption
from latte.data.text_embeddings import read_captions
from latte.errors import UserError
from latte.models.adapters import choose_trained, share_frozen_weights
from latte.models.latte_t2v import LatteT2V, LatteT2VConfig
from latte.models.precision import prepare
from latte.runtime import device
from latte.training.build import build
from latte.training.cache_maker import make_cache
from latte.training.identity import compare
from latte.training.state import load_state, state_of, weights_of
from latte.training.step import StepOptions, TrainStep
from latte.training.trainer import Trainer
from latte.weights import files, lora
from latte.weights.files import read_state_dict, write_state_dict
from latte.weights.fingerprint import base_fingerprint
from latte.weights.safetensors_file import read_safetensors

TINY = LatteT2VConfig(2, 12, num_layers=1, cross_attention_dim=24, sample_size=4, caption_channels=8)


@pytest.fixture(scope="module")
def tuned(data, cache, tmp_path_factory):
    """A LoRA training from the cache, its run, and the losses of one batch that it learned by heart before."""
    out = tmp_path_factory.mktemp("t2v") / "out"
    tuning = {"trainable": "lora", "lora_rank": 4, "lora_alpha": 8.0, "start_learning_rate": 1e-2, "ema_decay": 0.9}
    cfg = options(data, cache_folder=cache, output_path=out, **tuning)
    training = build(cfg)
    losses = learned(training, 12)
    trainer = Trainer(cfg, training)
    trainer.step = 12
    trainer.fit()
    (run,) = out.iterdir()
    return training, run, losses


@pytest.fixture
def uncompiled():
    """CustomGrad by operator, which for one call of a small network is faster than to compile it."""
    with device.use(graph_mode=False):
        yield


@pytest.mark.parametrize("name, images", [("latte_t2v_training", 0), ("latte_t2v_joint", 2)])
def test_loss_and_gradients_are_pytorchs(name, images, uncompiled):
    """With images: each has a caption of its own, and no attention over frames."""
    data, options = recorded(name), StepOptions(accumulation=2, scale_factor=1.0, images=images)
    step = TrainStep(trained_copy(), None, None, np.ones(3, np.float32), options)
    x = data["x_start"]
    moments = np.concatenate((x, np.full_like(x, -30)), 2)
    inputs = moments, np.zeros_like(x), data["t"], data["noise"], np.full((2, 8), -1, np.int32)
    call = step.as_function()
    loss = float(call(*map(ms.Tensor, (*inputs, data["text"], data["mask"]))))
    assert abs(loss / float(data["loss"]) - 1) < 1e-5
    gradients = {name: total.asnumpy() for name, total in zip(step.names, step.accumulated, strict=True)}
    assert abs(np.sqrt(sum((values**2).sum() for values in gradients.values())) / float(data["norm"]) - 1) < 1e-5
    for key in (key for key in data if key.startswith("gradient_")):
        assert error(gradients[key.removeprefix("gradient_")], data[key]) < 1e-4, key


def test_without_images_the_loss_is_that_of_the_videos_to_the_bit(uncompiled):
    data = recorded("latte_t2v_joint")
    x, noise, t, text, mask = (ms.Tensor(data[name]) for name in ("x_start", "noise", "t", "text", "mask"))
    net = trained_copy()
    videos, joint = (TrainStep(net, None, None, np.ones(3, np.float32), StepOptions(images=n)) for n in (0, 2))
    plain = videos.scaled_loss(x[:, :4], t, noise[:, :4], (text[:, 0], mask[:, 0]))[1]
    assert float(plain) == float(videos.loss(x[:, :4], t, noise[:, :4], (text[:, 0], mask[:, 0]))[0].mean())
    both = joint.scaled_loss(x, t, noise, (text, mask))[1]
    pixels, added = (each[:, 4:].reshape(4, 1, *each.shape[2:]) for each in (x, noise))
    said = tuple(each[:, 1:].reshape(4, *each.shape[2:]) for each in (text, mask))
    images = joint.loss(pixels, ms.Tensor(data["t"].repeat(2)), added, said)[0].mean()
    assert float(both) == pytest.approx(float(plain) * 4 / 6 + float(images) * 2 / 6, rel=1e-6)


@pytest.mark.slow
def test_joint_training_with_captioned_images_learns(data, cache):
    training = build(options(data, cache_folder=cache, images_per_video=2, start_learning_rate=2e-3))
    assert [values.shape for values in training.source[0][5:]] == [(3, 120, 32), (3, 120)]
    losses = learned(training, 12)
    assert losses[-1] < 0.8 * losses[0]


def trained_copy():
    return prepare(load_t2v(FOLDER / "transformer"), for_training=True)


def test_lora_learns_and_its_files_are_small(tuned):
    training, run, losses = tuned
    assert losses[-1] < 0.95 * losses[0] and training.num_frames == 4
    weights = dict(training.step.net.parameters_and_names())
    adapted = {name for name, weight in weights.items() if weight.requires_grad}
    assert adapted == set(training.step.names) and all("lora_" in name for name in adapted)
    assert len(adapted) == 2 * (2 * 8 + 2 * 4)  # q, k, v and out; blocks over patches have two attentions
    file = read_state_dict(run / "ckpt" / "ema-00000024.ckpt")
    assert set(file.tensors) == adapted and (file.metadata["lora_rank"], file.metadata["lora_alpha"]) == ("4", "8")
    state, _ = read_safetensors(run / "ckpt" / "state-00000024.safetensors")
    of_weights = {name for name in state if "." in name}
    assert of_weights == {f"{part}.{name}" for name in adapted for part in ("net", "ema", "adam_m", "adam_v")}
    assert (run / "metrics.csv").read_text().count("\n") == 7


def test_lora_leaves_the_base_as_it_was_and_in_memory_once(tuned):
    training, *_ = tuned
    base = read_state_dict(FOLDER / "transformer").tensors
    net, ema = (dict(net.parameters_and_names()) for net in (training.step.net, training.step.ema))
    assert all(np.array_equal(net[name].asnumpy(), values) for name, values in base.items())
    assert all((net[name] is ema[name]) == (name in base) for name in net)
    moved = [name for name in training.step.names if np.abs(net[name].asnumpy() - ema[name].asnumpy()).max() > 1e-4]
    assert len(moved) > len(training.step.names) / 2  # the average follows


def test_the_exported_folder_computes_what_the_adapted_network_does(tuned, uncompiled, tmp_path, monkeypatch, capsys):
    training, run, _ = tuned
    source, target = run / "ckpt" / "ema-00000024.ckpt", tmp_path / "mine"
    export(monkeypatch, source=source, base=FOLDER, target=target, dry_run=True)
    assert "(not written)" in capsys.readouterr().out and not target.exists()
    export(monkeypatch, source=source, base=FOLDER, target=target)
    expected, base = outputs(training.step.ema), outputs(load_t2v(FOLDER / "transformer"))
    assert error(outputs(load_t2v(target / "transformer")), expected) < 1e-5
    assert error(base, expected) > 1e-3
    names = {path.relative_to(FOLDER) for path in FOLDER.rglob("*")}
    assert names == {path.relative_to(target) for path in target.rglob("*")}
    assert (target / "model_index.json").read_bytes() == (FOLDER / "model_index.json").read_bytes()
    state = read_state_dict(target / "transformer").tensors
    changed = {
        name
        for name, values in read_state_dict(FOLDER / "transformer").tensors.items()
        if (state[name] != values).any()
    }
    assert changed == {name.replace("lora_up", "weight") for name in training.step.names if "lora_up" in name}


def test_the_additions_alone_have_diffusers_names(tuned, tmp_path, monkeypatch):
    source = tuned[1] / "ckpt" / "ema-00000024.ckpt"
    export(monkeypatch, source=source, lora_only=tmp_path / "mine.safetensors")
    peft, own = (read_state_dict(path).tensors for path in (tmp_path / "mine.safetensors", source))
    name = "transformer_blocks.0.attn1.to_out.0"
    assert len(peft) == len(own) and np.array_equal(peft[f"transformer.{name}.lora_A.weight"], own[f"{name}.lora_down"])
    assert np.array_equal(peft[f"transformer.{name}.lora_B.weight"], 2 * own[f"{name}.lora_up"])  # alpha / rank


def test_merging_keeps_the_dtype_and_the_fingerprint_does_not_depend_on_it():
    rng = np.random.default_rng(0)
    base = {"a.weight": rng.normal(size=(6, 5)), "a.bias": rng.normal(size=6), "b.weight": rng.normal(size=(2, 5))}
    single, half = ({key: values.astype(dtype) for key, values in base.items()} for dtype in (np.float32, np.float16))
    additions = {"a.lora_down": rng.normal(size=(2, 5)), "a.lora_up": rng.normal(size=(6, 2))}
    found = lora.merged(half, additions, 0.5, "a file")
    expected = half["a.weight"].astype(np.float64) + 0.5 * additions["a.lora_up"] @ additions["a.lora_down"]
    assert found["a.weight"].dtype == np.float16 and np.array_equal(found["a.weight"], expected.astype(np.float16))
    assert found["b.weight"] is half["b.weight"]
    assert base_fingerprint(single) == base_fingerprint(half)
    assert base_fingerprint(single) != base_fingerprint(single | {"a.bias": single["a.bias"] * 1.01})
    for broken in ({"a.lora_down": additions["a.lora_down"]}, {**additions, "c": additions["a.lora_up"]}):
        with pytest.raises(UserError, match="not the whole of a network's LoRA adapters"):
            lora.merged(half, broken, 0.5, "a file")
    with pytest.raises(UserError, match="but the base has no such weight; name the base"):
        lora.merged(half, {name.replace("a.", "c."): values for name, values in additions.items()}, 0.5, "a file")


@pytest.mark.parametrize(
    "given, said",
    [
        ({"source": "nothing.ckpt"}, "nothing.ckpt"),
        ({"base": None}, "--base and --target are needed"),
        ({"base": FOLDER / "transformer"}, "has no model_index.json; name the diffusers folder"),
        ({"target": FIXTURES}, "is there already and not empty"),
        ({"target": FOLDER / "new"}, "name a folder elsewhere"),
        ({"base": "other"}, "was trained on another network than"),
        ({"source": FOLDER / "vae"}, "holds an autoencoder, not the transformer of the text-to-video Latte-1"),
        ({"lora_only": "x.pt"}, "must end in .safetensors"),
        ({"lora_only": "x.safetensors", "source": FOLDER / "transformer"}, "without LoRA adapters"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_exports_are_one_sentence(given, said, tuned, tmp_path, monkeypatch, capsys):
    if given.get("base") == "other":  # the same network with one bias changed
        shutil.copytree(FOLDER, tmp_path / "other")
        state = read_state_dict(FOLDER / "transformer")
        state.tensors["proj_out.bias"] = state.tensors["proj_out.bias"] + np.float32(0.01)
        file = tmp_path / "other" / "transformer" / "diffusion_pytorch_model.safetensors"
        write_state_dict(file, state.tensors, {})
        given = {"base": tmp_path / "other"}
    given = {"source": tuned[1] / "ckpt" / "ema-00000024.ckpt", "base": FOLDER, "target": tmp_path / "new", **given}
    with pytest.raises(SystemExit) as ended:
        export(monkeypatch, **{key: value for key, value in given.items() if value is not None})
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line
    assert not (tmp_path / "new").exists()


def test_the_cache_holds_what_the_encoder_says_and_training_reads_it(data, cache):
    captions, fingerprint = read_captions(cache / TEXT)
    texts = sorted({caption(*clip) for clip in CLIPS})
    assert captions.captions == texts and len(fingerprint) == 64 and captions.text.dtype == np.float32
    embeddings, masks = load_text_encoder(FOLDER).encode([*texts, ""])
    for number, (embedding, mask) in enumerate(zip(embeddings, masks, strict=True)):
        found, found_mask = captions.padded(number if number < len(texts) else None)
        assert np.array_equal(found_mask, mask)
        assert np.array_equal(found, embedding * mask[:, None])
    assert len(captions.text) == masks[:-1].sum()  # real tokens only
    before = (cache / TEXT).stat().st_mtime_ns
    make_cache(options(data, CacheConfig, cache_folder=cache, cache_dtype="fp32"))
    assert (cache / TEXT).stat().st_mtime_ns == before  # nothing is encoded twice


def test_captions_from_the_cache_are_those_made_at_the_start_and_some_are_dropped(data, cache):
    cfg = options(data, class_dropout_prob=0.5)
    direct, cached = (build(one).source for one in (cfg, dataclasses.replace(cfg, cache_folder=str(cache))))
    null, null_mask = direct.captions.padded(None)
    dropped = 0
    for position in range(20):
        *_, text, mask = direct[position]
        assert all(np.array_equal(one, other) for one, other in zip(cached[position][-2:], (text, mask), strict=True))
        own = direct.captions.padded(direct.dataset.sample(position).record)
        is_null = np.array_equal(text, null) and np.array_equal(mask, null_mask)
        assert is_null or (np.array_equal(text, own[0]) and np.array_equal(mask, own[1]))
        dropped += is_null
    assert 4 <= dropped <= 16 and direct.columns == cached.columns == [*direct.columns[:5], "text", "mask"]


@pytest.fixture
def opened(monkeypatch):
    """The folders whose weights are opened, once each time."""
    folders, original = [], files._read_file

    def counted(path):
        folders.append(path.parent.name)
        return original(path)

    monkeypatch.setattr(files, "_read_file", counted)
    return folders


@pytest.mark.parametrize("from_cache", [False, True])
def test_the_folder_is_read_once(data, cache, opened, from_cache):
    build(options(data, trainable="lora", cache_folder=cache if from_cache else None))
    assert sorted(opened) == [*(["text_encoder"] if not from_cache else []), "transformer", "vae"]


def test_a_cache_reads_the_folder_once(data, cache, opened):
    make_cache(options(data, CacheConfig, cache_folder=cache, cache_dtype="fp32"))
    assert sorted(opened) == ["text_encoder", "transformer", "vae"]


@pytest.mark.parametrize(
    "given, said",
    [
        ({"trainable": "lora", "model_name": "Latte-S/2"}, "trainable is"),
        ({"pretrained_model_path": None}, "pretrained_model_path is null, but must be the folder"),
        ({"pretrained_model_path": "nowhere"}, "nowhere does not exist"),
        ({"model_name": None}, "is a text-to-video folder; set model_name: LatteT2V"),
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"lora_alpha": -1.0}, "lora_alpha is -1.0"),
        ({"depth": 3}, "depth is 3, but must be null for LatteT2V"),
        ({"condition": "class"}, "condition is"),
        ({"caption_column": None}, "learns from captions, but the data has none"),
        ({"text_encoder_path": FIXTURES}, "does not hold the folders tokenizer and text_encoder"),
        ({"vae_checkpoint": "none.ckpt"}, "none.ckpt"),
        ({"text_embeddings": "clip.npz"}, "has no mask, so it is not T5's but CLIP's"),
        ({"text_embeddings": "nothing.npz"}, "nothing.npz does not exist"),
        ({"image_size": 24, "pretrained_model_path": "patch8"}, "image_size 24 is not a multiple of 16"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_options_are_one_sentence(given, said, data, tmp_path):
    given = dict(given)
    if given.get("text_embeddings") == "clip.npz":
        given["text_embeddings"] = tmp_path / "clip.npz"
        np.savez(given["text_embeddings"], captions=np.array(["a"]), text=np.zeros((1, 77, 768)), null=0)
    if given.get("pretrained_model_path") == "patch8":
        given["pretrained_model_path"] = tmp_path / "patch8"
        shutil.copytree(FOLDER / "vae", tmp_path / "patch8" / "vae")
        config = dataclasses.replace(TINY, patch_size=8, sample_size=8, caption_channels=32)
        weights = {name: weight.asnumpy() for name, weight in LatteT2V(config).parameters_and_names()}
        folder = tmp_path / "patch8" / "transformer"
        write_state_dict(folder / "diffusion_pytorch_model.safetensors", weights, {})
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
        (tmp_path / "patch8" / "model_index.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        build(options(data, **given))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_whose_captions_nobody_has_written_is_named(data, tmp_path):
    table = tmp_path / "clips.csv"
    rows = [line.split(",") for line in (data / "table.csv").read_text().splitlines()]
    table.write_text("video,caption\n" + "".join(f"{row[0]},\n" for row in rows[1:]))
    with pytest.raises(UserError, match=rf"has none; fill in the column caption of {table}"):
        build(options(data, csv_path=table))


def test_a_state_of_another_tuning_is_refused(tuned):
    training, *_ = tuned
    state = state_of(training.step)
    with pytest.raises(UserError, match=r"of a run that trained 1 weights more, such as proj_out\.bias"):
        load_state(training.step, state | {"adam_m.proj_out.bias": np.zeros(32)}, "a file")
    for key, said in ((lora.ALPHA, "lora_alpha 8, but the options ask for 16"), (lora.BASE, "another pretrained")):
        with pytest.raises(UserError, match=said):
            compare(training.metadata, training.metadata | {key: "16"}, "a file")


def test_additions_to_widened_heads_are_saved_at_their_own_width():
    nets = [LatteT2V(TINY, flash=True, seed=0) for _ in range(2)]
    for net in nets:
        choose_trained(net, "lora", rank=2, seed=3)
        prepare(net, for_training=True)
    share_frozen_weights(nets[1], nets[0])
    step = TrainStep(*nets, None, np.ones(3, np.float32), StepOptions())
    attention = step.net.transformer_blocks[0].attn1
    assert attention.to_q.lora_up.shape == (32, 2) and attention.to_out[0].lora_down.shape == (2, 32)  # 12 -> 16
    assert not attention.to_q.weight.requires_grad and not step.ema.transformer_blocks[0].attn1.to_q.bias.requires_grad
    saved = weights_of(step, state_of(step), trained_only=True)
    assert saved["transformer_blocks.0.attn1.to_q.lora_up"].shape == (24, 2)
    assert saved["transformer_blocks.0.attn1.to_out.0.lora_down"].shape == (2, 24)
    state = {name: values + np.float32(0.5 * ("." in name)) for name, values in state_of(step).items()}
    load_state(step, state, "a file")
    assert all(np.array_equal(state[name], values) for name, values in state_of(step).items())
    assert (attention.to_out[0].lora_down.asnumpy().reshape(2, 2, 16)[..., 12:] == 0).all()


@pytest.mark.parametrize("name", ["t2v_finetune", "t2v_lora"])
def test_the_configurations_train_the_tiny_network(name, data, tmp_path):
    words = ["-c", str(ROOT / "configs" / "training" / f"{name}.yaml"), "--pretrained_model_path", str(FOLDER)]
    words += ["--data_folder", str(data), "--csv_path", str(data / "table.csv"), "--cache_folder", "null"]
    words += ["--image_size", "16", "--num_frames", "4", "--use_parallel", "false", "--dtype", "fp32", "--dry_run"]
    training = build(parse_config(TrainConfig, words))
    trained = len(training.step.names)
    assert trained == (83 if name == "t2v_finetune" else 48) and training.total_steps > 0

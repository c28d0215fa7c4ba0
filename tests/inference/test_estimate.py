"""What is predicted of a run: beside a plan of MindSpore's own back end, figures counted by hand, published ones."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from support.golden_values import FIXTURES, ROOT

from latte.commands import estimate as command
from latte.config import SampleConfig, TrainConfig
from latte.errors import UserError
from latte.inference import estimate, published
from latte.runtime import device, roofline
from latte.runtime.roofline import Launch, Sizes
from latte.training.build import build, predict

SIZES = {"hidden_size": 32, "depth": 2, "num_heads": 2, "patch_size": 2, "image_size": 16, "num_frames": 4}
HALVES = {"dtype": "fp16", "enable_flash_attention": True}
XL = {"width": 1152, "heads": 16, "pairs": 14, "weights": 674e6}


def trained(**options):
    cfg = TrainConfig(**(HALVES | options))
    return estimate.training(cfg, *estimate.described(cfg))


def sampled(**options):
    cfg = SampleConfig(**({"checkpoint": "none.ckpt"} | HALVES | options))
    config, vae, _ = estimate.stored(cfg)
    return estimate.sampling(cfg, config, vae)


def on(name="910B3", **fields):
    return roofline.card(name, **fields)


def counted(launches):
    numbers, moved = Counter(), Counter()
    for each in launches:
        numbers[each.op] += each.number
        moved[each.op] += each.number * each.bytes
    return numbers, moved


@pytest.fixture(scope="module")
def planned():
    """A plan of a network whose sizes the tables were not made of; `make_estimate_tables.py` writes both."""
    return json.loads((FIXTURES / "estimate_plan.json").read_text())


@pytest.fixture(scope="module")
def of_plan(planned):
    assert planned["plan"] == "train --pixels --batch 3 --frames 8 --side 16 --width 160 --heads 4 --depth 6"
    sizes = {"train_batch_size": 3, "num_frames": 8, "image_size": 128, "hidden_size": 160, "num_heads": 4, "depth": 6}
    return trained(**sizes)


def test_launches_and_bytes_are_those_of_a_plan(planned, of_plan):
    numbers, moved = counted(estimate.steps(of_plan, on()))
    assert {op: round(number) for op, number in numbers.items()} == planned["launches"]
    assert sum(moved.values()) == pytest.approx(sum(planned["bytes"].values()), rel=0.03)
    large = [op for op, count in planned["bytes"].items() if count > 1e8]
    assert all(moved[op] == pytest.approx(planned["bytes"][op], rel=0.06) for op in large)


def test_memory_is_that_of_a_plan(planned, of_plan):
    memory = estimate.memory(of_plan)
    assert memory.peak == pytest.approx(planned["peak"], rel=0.1)
    assert memory.weights == pytest.approx(4 * planned["weights"])
    assert of_plan.sizes.weights == planned["weights"]


def test_recomputing_some_blocks_is_between_recomputing_all_and_none():
    """7 of 14 pairs, and of none what a step has besides its blocks."""
    options = {"num_frames": 128, "train_batch_size": 1, "cache_folder": "x"}
    every, half, none = (
        trained(**options, use_recompute=recompute, recompute_every=each)
        for recompute, each in ((True, 1), (True, 2), (False, 1))
    )
    found = [estimate.predict(each, on()) for each in (every, half, none)]
    for name in ("flops", "bytes", "launches"):
        most, middle, least = (getattr(each, name) for each in found)
        assert middle == pytest.approx((most + least) / 2) and least < middle < most
    assert found[0].memory.peak < found[1].memory.peak < found[2].memory.peak
    on_cpu = [estimate.memory_of_cpu(each).activations for each in (every, half, none)]
    assert on_cpu[1] == pytest.approx((on_cpu[0] + on_cpu[2]) / 2)


def test_operations_are_those_that_the_paper_s_network_has():
    for frames, published_flops in ((16, 3.72e12), (128, 30.0e12)):
        found = roofline.launches("sample", Sizes(1, frames, 16, **XL, pads=False))
        assert sum(each.number * each.flops for each in found) == pytest.approx(published_flops, rel=0.02)


def test_operations_of_the_variants_are_those_of_their_layers():
    """Operations of the paper's table 4 are three times the products of a pass: 5572.69, 5572.69 and 6153.15 G.

    There the modulation is computed for every frame and every patch. What it has for variant 4, 1545.15 G, is a
    quarter of what as many parameters take for as many tokens, and we do not compare with it.
    """

    def operations(**options):
        work = sampled(image_size=256, num_frames=16, enable_flash_attention=False, **options)
        return sum(each.number * each.flops for each in estimate.steps(work, on()))

    first, second, third, fourth = (operations(variant=number) for number in (1, 2, 3, 4))
    assert first == second and fourth == pytest.approx(third, rel=0.02)
    assert first == pytest.approx(5572.69e9 / 3 * 2, rel=0.02)
    assert third == pytest.approx(6153.15e9 / 3 * 2, rel=0.04)
    blocks = first - operations(depth=2)
    layers = third - operations(depth=2, variant=3)
    scores = 2 * (256 + 16)  # of a token, over patches and over frames
    assert layers / blocks == pytest.approx(21 * (16 * 1152 + scores) / (26 * (12 * 1152 + scores / 2)), rel=0.005)
    assert operations(patch_embedding="compression") == pytest.approx(first / 2, rel=0.01)
    assert operations(injection="all_tokens") == pytest.approx(first * 257 / 256, rel=0.01)


def test_operations_of_a_training_counted_by_hand():
    work = trained(**SIZES, train_batch_size=1, cache_folder="x", dtype="fp32", enable_flash_attention=False)
    tokens, width = 4, 32  # of 16 pixels, 2 x 2 latents, each frame has one patch
    products = 2 * tokens * 12 * width * width * 2  # qkv, projection and MLP of two blocks
    attention = 2 * 2 * tokens * width * (1 + 4)  # scores and their product with v, over patches and over frames
    found = estimate.predict(work, on("H100"))
    of_blocks = 3 * products + 3.5 * attention  # the gradient of attention computes the scores again
    once = 3 * 2 * (2 * 6 + 2) * width * width  # modulation, of the video
    assert of_blocks < found.flops < of_blocks + once + 3 * 2 * (256 + width) * width + 30 * tokens * width * 32


@pytest.mark.parametrize(
    "operator, kind",
    [
        ("aclnnMm", "product"),
        ("aclnnAddmm", "product"),
        ("aclnnBatchMatMul", "product"),
        ("aclnnWeightQuantBatchMatmulV2", "product"),
        ("aclnnMul", "elementwise"),
        ("aclnnMuls", "elementwise"),
        ("aclnnForeachMulScalar", "elementwise"),
        ("aclnnApplyAdamWV2", "elementwise"),
        ("aclnnSWhere", "elementwise"),
        ("aclnnFlashAttentionScoreGrad", "attention"),
        ("aclnnConvolutionBackward", "convolution"),
        ("aclnnLayerNormBackward", "norm"),
        ("aclnnReduceSum", "reduction"),
        ("aclnnMean", "reduction"),
        ("aclnnMaximum", "elementwise"),
        ("aclnnCast", "copy"),
        ("aclnnInplaceCopy", "copy"),
        ("aclnnForeachCopy", "copy"),
        ("HcclAllReduce", "exchange"),
    ],
)
def test_the_class_of_an_operator(operator, kind):
    assert roofline.class_of(operator) == kind


@pytest.mark.parametrize(
    "options", [{"num_frames": 32}, {"train_batch_size": 6}, {"image_size": 512}, {"cache_folder": None}]
)
def test_more_takes_more(options):
    less, more = trained(cache_folder="x"), trained(**({"cache_folder": "x"} | options))
    for before, after in zip(estimate.predict(less, on())[:2], estimate.predict(more, on())[:2], strict=True):
        assert after > before
    assert estimate.memory(more).peak > estimate.memory(less).peak or options == {"cache_folder": None}
    assert estimate.predict(more, on()).times.total > estimate.predict(less, on()).times.total


def test_recomputation_takes_time_and_gives_memory():
    plain, again = (trained(cache_folder="x", use_recompute=recompute) for recompute in (False, True))
    assert estimate.predict(again, on()).flops > 1.2 * estimate.predict(plain, on()).flops
    assert estimate.memory(again).peak < 0.5 * estimate.memory(plain).peak
    assert estimate.largest_batch(again, 60e9) > 2 * estimate.largest_batch(plain, 60e9)
    assert estimate.memory_of_cpu(again).peak < estimate.memory_of_cpu(plain).peak


def test_the_largest_batch_is_the_last_that_fits():
    work = trained()
    batch = estimate.largest_batch(work, 60e9)
    assert estimate.memory(work.of_batch(batch)).peak <= 60e9 < estimate.memory(work.of_batch(batch + 1)).peak
    assert estimate.largest_batch(work, 1e9) == 0


def test_a_launch_takes_the_longer_of_its_operations_and_its_bytes():
    card = on(half=100, bandwidth=10, efficiency={"product": 0.5}, traffic=1.0, launch=0.0, shortest=0.0)
    computing, reading = Launch("x", "product", "float16", 2, 100, 1), Launch("x", "product", "float16", 1, 1, 50)
    adding = Launch("y", "elementwise", "float32", 3, 0, 10)
    times = roofline.seconds([computing, reading, adding], card, exchange=7)
    assert times == (2 * 2 + 5, 3, 0, 7, 0) and times.total == 19
    slow_host = dataclasses.replace(card, launch=10)  # 6 launches: the device waits for the host
    assert roofline.seconds([computing, reading, adding], slow_host).total == 60
    assert roofline.seconds([computing, reading, adding], slow_host, sunk=True).total == 12
    assert roofline.seconds([adding], dataclasses.replace(card, shortest=4)) == (0, 3, 9, 0, 0)


def test_what_ranks_exchange():
    card = on(link=100, network=10)
    assert roofline.all_reduce(400, card, 1) == 0
    assert roofline.all_reduce(400, card, 4) == 2 * 3 / 4 * 400 / 100
    inside, outside = 2 * 3 / 4 * 400 / 100, 2 * 1 / 2 * 100 / 10  # two hosts of four: each card sends a fourth
    assert roofline.all_reduce(400, card, 8, hosts=2) == inside + outside
    mesh = on(link=100, network=10, mesh=50)  # a link to each other card of the host, all at once
    assert roofline.all_to_all(400, on(link=100, mesh=0), 4) == 3 / 4 * 400 / 100
    assert roofline.all_to_all(400, mesh, 1) == 0 and roofline.all_to_all(400, mesh, 4) == 400 / 4 / 50
    assert roofline.all_to_all(400, mesh, 8, inside=4) == 400 / 8 / 50 + 4 / 8 * 400 / 10
    one, eight = (estimate.predict(trained(), on(), ranks) for ranks in (1, 8))
    assert one.times.exchange == 0 and eight.times.exchange > 0.05
    stages = [trained(zero_stage=stage, use_recompute=True) for stage in range(4)]
    sizes = [estimate.memory(work, 8).peak for work in stages]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    kept = estimate.memory(stages[3], 8)  # of the weights, in float32, and all that the optimizer has, an eighth
    assert kept.weights + kept.optimizer < 1.1 * 16 * stages[3].trained / 8
    assert 0.98 < stages[3].in_blocks / stages[3].trained < 1
    assert len({estimate.memory(work, 1).peak for work in stages}) == 1


def test_what_blocks_hide_of_an_exchange_counted_by_hand():
    """Two gatherings of halves and a sum of float32 for each of 28 blocks; what takes longer than computing counts."""
    work = trained(zero_stage=3, use_recompute=True, cache_folder="x")
    count, blocks = work.in_blocks / 28, 28
    computing = estimate.predict(work, on(), 1).times.total / blocks

    def exchanged(**speed):
        card = on(collective=1e-5, **speed)
        others = roofline.all_reduce(4 * (work.trained - work.in_blocks), card, 8)
        return estimate.predict(work, card, 8).times.exchange - others, card

    # A gathering takes 7 / 8 of the row's bytes over a link, and a sum twice those.
    fast, card = exchanged(link=1e12)
    gathered, summed = (7 / 8 * bytes_each * count / 1e12 + 1e-5 for bytes_each in (2, 4))
    assert gathered < computing / 4 and gathered + summed < 3 / 4 * computing
    assert fast == pytest.approx(2 * gathered + summed)
    slow, card = exchanged(link=1e8)
    gathered, summed = (7 / 8 * bytes_each * count / 1e8 + 1e-5 for bytes_each in (2, 4))
    assert gathered > computing
    assert slow == pytest.approx(blocks * (2 * gathered + summed) - (blocks - 1) * computing)
    second = estimate.predict(dataclasses.replace(work, zero_stage=2), card, 8).times.exchange
    assert slow + computing * (blocks - 1) == pytest.approx(second, rel=0.01)  # as many bytes as in stage 2


def test_an_update_on_the_host_counted_by_hand():
    """Of 18 bytes per weight 2 are left on the card; a step waits for the link, the host, and the link again."""
    plain, offloaded = (trained(offload_optimizer=given, cache_folder="x") for given in (False, True))
    count = plain.trained
    assert count == pytest.approx(674e6, rel=0.03)
    assert estimate.memory(plain).peak - estimate.memory(offloaded).peak == pytest.approx(16 * count, rel=0.01)
    assert estimate.memory(offloaded).weights == pytest.approx(2 * count, rel=0.01)
    card = on(host_link=1e9, host_memory=2e9)
    assert estimate.predict(plain, card).times.offload == 0
    assert estimate.predict(offloaded, card).times.offload == pytest.approx(8e-9 * count + 56e-9 * count / 2)
    bare = dataclasses.replace(offloaded, ema=False, accumulation=3)
    assert estimate.predict(bare, card).times.offload == pytest.approx(8e-9 * count + 44e-9 * count / 2)
    for stage, link, moved in ((1, 8 / 4 + 4, 44 / 4 + 12), (2, 8 / 4, 56 / 4)):
        found = estimate.predict(dataclasses.replace(offloaded, zero_stage=stage), card, 4).times
        assert found.offload == pytest.approx((link * 1e-9 + moved * 1e-9 / 2) * count), stage
    kept = estimate.memory(dataclasses.replace(offloaded, accumulation=2)).optimizer
    assert kept == 4 * count  # gradients that are added up


def test_it_is_said_that_a_training_would_fit_with_offload(capsys):
    words = ["--train_batch_size", "5", "--cache_folder", "x", "--dtype", "fp16", "--enable_flash_attention", "True"]
    command.main([*words, "--card", "910B4"])
    said = capsys.readouterr().out
    assert "this does not fit" in said and "with offload_optimizer it would fit: peak" in said
    command.main([*words, "--card", "910B4", "--offload_optimizer", "True"])
    said = capsys.readouterr().out
    assert "fit" not in said and ", offload 1.07 s" in said
    command.main([*words, "--card", "910B4", "--num_frames", "128"])  # is too long for either
    said = capsys.readouterr().out
    assert "this does not fit" in said and "with offload" not in said
    command.main([*words, "--card", "910B3"])
    assert "fit" not in capsys.readouterr().out


def test_a_teacher_takes_four_passes_and_the_room_of_its_weights():
    plain, taught = trained(), trained(distill_steps=4, pretrained_model_path="latte.ckpt")
    one, other = (counted(estimate.steps(work, on()))[0] for work in (plain, taught))
    once = counted(estimate.steps(dataclasses.replace(plain, kind="sample", encoded=0), on()))[0]
    assert sum(once.values()) > 100 and all(other[op] == pytest.approx(one[op] + 4 * once[op]) for op in other)
    more = estimate.memory(taught).peak - estimate.memory(plain).peak
    assert more == pytest.approx(2 * taught.sizes.weights)
    assert estimate.memory_of_cpu(taught).weights == 2 * estimate.memory_of_cpu(plain).weights


def test_a_card_whose_fused_attention_has_no_gradient_trains_without_it():
    def attends(work):
        return any(each.kind == "attention" for each in estimate.steps(work, on("910B4")))

    assert attends(sampled()) and not attends(trained())


def test_the_text_encoder_takes_the_memory_of_a_block():
    """T5-XXL in halves has 9.5 GB, a block of it 0.39 GB."""
    work = sampled(**LATTE_1)
    assert work.text_encoder_read == pytest.approx(9.52e9, rel=0.01) and work.text_encoder == pytest.approx(
        386e6, rel=0.01
    )
    whole = dataclasses.replace(work, text_encoder=work.text_encoder_read)
    assert estimate.memory(work).peak < estimate.memory(whole).peak
    said = estimate.report(work, "910B4")
    assert "predicted text encoder: 8.9 GiB go up in 433 ms for new prompts, 0.4 GiB in memory at a time" in said
    assert "text encoder" not in estimate.report(sampled(), "910B4")


def test_exact_attention_reads_and_writes_its_scores():
    fused, exact = (roofline.launches("sample", Sizes(1, 16, 32, **XL), fused=kernel) for kernel in (True, False))
    flops = [sum(each.number * each.flops for each in found) for found in (fused, exact)]
    moved = [sum(each.number * each.bytes for each in found) for found in (fused, exact)]
    assert flops[0] == pytest.approx(flops[1])
    scores = 14 * 16 * 16 * 1024 * (1024 + 16)  # of a pair of blocks: over patches, and over frames
    assert moved[1] - moved[0] == pytest.approx(scores * 10, rel=0.05)


@pytest.mark.parametrize("dtype, factor", [("bf16", 1), ("fp32", 2)])
def test_float32_moves_twice_what_halves_do_and_casts_nothing(dtype, factor):
    halves, others = (roofline.launches("sample", Sizes(1, 16, 16, **XL), each) for each in ("fp16", dtype))
    products = [sum(x.number * x.bytes for x in y if x.op == "aclnnAddmm" and x.flops > 1e10) for y in (halves, others)]
    assert products[1] == pytest.approx(factor * products[0], rel=0.01)
    casts = [x for x in others if x.op == "aclnnCast" and x.bytes > 1e7]
    assert bool(casts) == (factor == 1)


def test_an_autoencoder_in_halves_takes_less_time_and_memory():
    plain = trained()
    halves = dataclasses.replace(plain, vae_dtype="bf16")
    assert estimate.memory(halves).autoencoder < 0.7 * estimate.memory(plain).autoencoder
    encoder = [estimate.predict(work, on()).times.total for work in (plain, halves, trained(cache_folder="x"))]
    assert encoder[1] - encoder[2] < 0.5 * (encoder[0] - encoder[2])


# The rows of others, and what was fitted on them.


def test_published_speeds_are_predicted_within_a_quarter():
    rows = published.rows()
    assert len(rows) == 15 and {row.unit for row in rows} == {"img/s", "s"}
    assert all(abs(row.ratio - 1) < 0.05 for row in rows if row.fitted), published.report()
    assert all(abs(row.ratio - 1) <= published.CLOSE for row in rows if not row.fitted), published.report()


def test_no_more_is_fitted_than_there_are_rows_to_check():
    rows = published.rows()
    fitted = [each.strip() for row in rows for each in row.fitted.split(",") if row.fitted]
    assert len(fitted) == len(set(fitted)) <= sum(not row.fitted for row in rows)


def test_the_documentation_has_the_rows_as_they_are_predicted():
    assert published.report() in (ROOT / "docs" / "estimate.md").read_text(encoding="utf-8")


# The command, and what --dry_run prints.

CONFIGS = sorted((ROOT / "configs" / "training").glob("*.yaml")) + sorted(
    (ROOT / "configs" / "inference").glob("*.yaml")
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_that_is_shipped_is_predicted(path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    command.main(["-c", str(path), "--card", "910B3"])
    said = capsys.readouterr().out.splitlines()
    assert "measured" not in "".join(said)
    lines = [
        line
        for line in said
        if not line.endswith(("is not here", "condition prompt", "condition none", "condition class"))
    ]
    assert len(lines) == 5 + any("text encoder" in line for line in lines) and all(
        line.startswith("predicted") for line in lines
    )
    assert path.parent.name == ("inference" if "per denoising step" in lines[0] else "training")


@pytest.mark.parametrize("card", ["910B", "910B3", "910A", "A3", "H100", "H200"])
def test_every_card_has_published_peaks_and_their_source(card, capsys):
    assert len(roofline.cards()["cards"][card]["source"]) > 20
    command.main(["-c", "sky_video", "--card", card, "--cards", "16", "--hosts", "2"])
    said = capsys.readouterr().out
    assert f"predicted for 16 x {card} on 2 hosts in fp16" in said and "img/s" in said


def test_this_machine_is_a_card_whose_product_is_measured(capsys):
    command.main(["-c", "demo_video", "--card", "cpu"])
    said = capsys.readouterr().out
    assert said.count("predicted") == 4 and "launches" not in said


@pytest.mark.parametrize(
    "words, message",
    [
        (["-c", "sky_video"], "--card is not given"),
        (
            ["-c", "sky_video", "--card", "910C"],
            "--card is 910C, but must be one of 910B, 910B3, 910B4, 910A, A3, H100, H200, cpu",
        ),
        (["-c", "sky", "--card", "A3", "--cards", "3", "--hosts", "2"], "hosts is 2, but must be a divisor of the 3 c"),
        (["-c", "sky_vide", "--card", "A3"], "the nearest that is shipped is 'sky_video'"),
        (["-c", "sky", "--card", "A3", "--train_batch_size", "3"], "there is no option 'checkpoint'"),
    ],
)
def test_what_cannot_be_predicted_is_said_in_one_sentence(words, message):
    with pytest.raises(UserError, match=message) as caught:
        command.main(words)
    assert "\n" not in str(caught.value)


def test_sizes_come_from_the_files_if_they_are_here(capsys):
    words = ["--checkpoint", str(FIXTURES / "latte_class.pt"), "--vae_checkpoint", str(FIXTURES / "vae.bin")]
    command.main([*words, "--card", "A3", "--sampling_steps", "3"])
    said = capsys.readouterr().out
    assert "assumed" not in said and "3 network calls" in said


def test_decoding_in_tiles_takes_less_memory_and_a_tile_larger_than_a_frame_as_much():
    for memory in (estimate.memory, estimate.memory_of_cpu):
        whole, tiled, wide = (memory(sampled(image_size=512, vae_tile=tile)) for tile in (0, 128, 1024))
        assert whole == wide and tiled.autoencoder < whole.autoencoder and tiled.peak <= whole.peak


def test_prompts_and_guidance_tell_networks_that_are_not_here_yet():
    assert sampled(prompts=["a dog"]).kind == "t2v sample guided"
    assert sampled(guidance_scale=7.0).kind == "sample guided" and sampled().kind == "sample"
    assert sampled(sampler="heun", sampling_steps=20).calls > sampled(sampler="ddim", sampling_steps=20).calls


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for k in range(2):
        (root / "a" / str(k)).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(root / "a" / str(k) / f"x_{number}.png")
    return root


def test_every_second_pair_of_blocks_is_recomputed(data):
    options = {"vae_checkpoint": str(FIXTURES / "vae.bin"), "train_batch_size": 1, "max_steps": 4, "depth": 6}
    cfg = TrainConfig(**SIZES | options, data_folder=str(data), use_recompute=True, recompute_every=2)
    blocks = build(cfg).step.net.blocks
    assert [block.recomputed is not None for block in blocks] == [True, True, False, False, True, True]


def test_a_dry_run_of_a_training_prints_the_same_lines(data, monkeypatch):
    options = {
        "data_folder": str(data),
        "vae_checkpoint": str(FIXTURES / "vae.bin"),
        "train_batch_size": 1,
        "max_steps": 4,
    }
    cfg = TrainConfig(**SIZES, **options)
    training = build(cfg)
    said = predict(cfg, training)
    assert said.count("predicted") == 4 and "for 4 steps" in said
    with device.use("Ascend", chip="Ascend910B3"):
        assert predict(cfg, training).startswith("predicted for 1 x 910B in fp32, per step: ")
    monkeypatch.setattr(device, "free_memory", lambda: 1)
    assert "this does not fit: take a smaller train_batch_size" in predict(cfg, training)
    with device.use("GPU"):
        assert "latte estimate --card H100" in predict(cfg, training)


LATTE_1 = {"prompts": ["a dog"], "sampling_steps": 50}


def test_ranks_that_share_frames_exchange_tokens_twice_per_block_over_frames():
    """Counted by hand for Latte-1 at 512 px on 8 cards: 28 blocks, both halves, 16 x 1024 tokens of 1152 halves."""
    work = sampled(**LATTE_1, sequence_parallel=8)
    assert work.exchanges == 2 * 28
    assert work.exchanged == 2 * 16 * 1024 * 1152 * 2 / 8
    assert work.exchanges * work.exchanged * 7 / 8 == pytest.approx(0.46e9, rel=0.01)
    training = trained(num_frames=16, image_size=256, sequence_parallel=4, train_batch_size=1)
    assert (training.exchanges, training.exchanged) == (4 * 14, 16 * 256 * 1152 * 2 / 4)


def test_a_rank_has_its_share_of_the_operations_and_the_memory():
    work = sampled(**LATTE_1)
    one = estimate.predict(work, on())
    for given in ({"sequence_parallel": 8}, {"sequence_parallel": 4, "cfg_parallel": True}):
        found = estimate.predict(sampled(**LATTE_1, **given), on(), 8)
        assert found.flops * 8 == pytest.approx(one.flops, rel=0.02), given  # texts and modulation are not shared
        assert found.memory.activations * 8 == pytest.approx(one.memory.activations, rel=1e-6), given
        assert found.after * 8 == pytest.approx(one.after, rel=0.05), given
        assert one.times.total / 8 < found.times.total < one.times.total / 5


def test_what_does_not_divide_is_filled_up():
    of_five, of_six = (sampled(num_frames=frames, sequence_parallel=2) for frames in (5, 6))
    assert of_five.sizes.tokens == of_six.sizes.tokens and of_five.exchanged == of_six.exchanged


def test_the_scaling_table_has_a_line_for_each_number_of_cards(capsys):
    words = ["-c", str(ROOT / "configs/inference/t2v.yaml"), "--card", "910B3", "--scaling", "--prompts", "a dog"]
    command.main(words)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[0] for line in lines] == [
        "| 1",
        "| 2",
        "| 4",
        "| 8",
        "| 16",
    ]  # 64 cards have no 64 frames


def test_cards_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="take sequence_parallel 2 or 4, or start 6 or 9 ranks"):
        estimate.report(sampled(**LATTE_1, sequence_parallel=3), "910B3", 8)

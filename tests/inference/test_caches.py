"""Ways to skip work: a video depends on no other, formulas against NumPy, the search against brute force, refusals."""

import dataclasses
import itertools
import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops
from support.compilations import compilations
from support.golden_values import FIXTURES, error, tiny

from latte import LattePipeline, create_model
from latte.commands import schedule
from latte.diffusion.solvers import SOLVERS, Solver
from latte.errors import UserError
from latte.inference import caches, inputs, schedule_search
from latte.inference.caches import Schedule, Walk, choose, fastercache, teacache
from latte.inference.caches.schedule import extrapolated, model_of, read_schedule
from latte.inference.latents import LatentSampler, Request
from latte.runtime import device

DEPTH, STEPS = 3, 5
WALK = Walk("ddim", STEPS, STEPS, DEPTH)
SLOW = pytest.mark.slow
LABELS = np.array([0, 3, 1], np.int32)
GOOD = {"computed": [0, 2], "calls": 5, "blocks": [0, 3], "order": 0, "solver": "ddim", "steps": 5, "model": "x"}


class Toy(nn.Cell):
    """A network of three blocks of few operations, which the seam that caches use calls as it calls a Latte."""

    def __init__(self):
        super().__init__()
        self.temporal, self.blocks = True, [0.3, -0.2, 0.25]

    def construct(self, x, t, y):
        tokens, c = self.embed(x, t, y)
        return self.finish(self.run_blocks(tokens, c, 0, DEPTH), c)

    def embed(self, x, t, y):
        level, label = ((each / size).reshape((-1, 1, 1, 1, 1)) for each, size in ((t, 1000), (y, 5)))
        return x + 0.1 * label, (level, label)

    def run_blocks(self, x, c, first, last):
        for i in range(first, last):
            x = x + self.blocks[i] * ops.tanh(x + (i + 1) * c[0] - c[1])
        return x

    def finish(self, x, c):
        return ops.concat((0.9 * x, x * c[0]), axis=2)

    def first_norm(self, x, c):
        return x * (1 + c[0]) + c[1]


@pytest.fixture(scope="module")
def samplers():
    """A sampler for each form of the graphs, which the tests share."""
    return {target: LatentSampler(Toy()) for target in ("CPU", "GPU")}


@pytest.fixture(scope="module")
def real():
    """A sampler of a small Latte whose blocks change their tokens; those of a new one do not."""
    sizes = {"hidden_size": 16, "depth": DEPTH, "num_heads": 2, "patch_size": 2, "input_size": 4, "num_frames": 2}
    net, rng = create_model("Latte-S/2", condition="class", num_classes=5, **sizes), np.random.default_rng(0)
    for weight in net.get_parameters():
        weight.set_data(ms.Tensor(rng.normal(0, 0.2, weight.shape).astype(np.float32)))
    return LatentSampler(net)


def request(rows=(0, 1, 2), scale=4.0, solver="ddim", steps=STEPS, **options):
    """Return the request for some of three videos."""
    labels = LABELS[list(rows)]
    guided = {"null": (np.full_like(labels, 5),), "guidance_scale": scale} if scale != 1 else {}
    return Request(
        seeds=[7 + row for row in rows],
        shape=(2, 4, 4, 4),
        conditions=(labels,),
        num_inference_steps=steps,
        solver=Solver(solver),
        **guided,
        **options,
    )


def cached(name, blocks=(0, DEPTH)):
    return dataclasses.replace(choose(name, 0, WALK), blocks=blocks)


@pytest.mark.parametrize("target, scale", [("CPU", 4.0), ("GPU", 4.0), pytest.param("GPU", 1.0, marks=SLOW)])
def test_a_video_with_a_schedule_depends_on_no_other(target, scale, samplers):
    method = cached("every3-order1", blocks=(1, 3))
    with device.use(target):
        together = samplers[target].sample(request(scale=scale, cache=method))
        assert samplers[target].skipped == 0.4  # calls 0, 3 and 4 of 5 are computed
        alone = samplers[target].sample(request([2], scale, cache=method))
        if target == "CPU":  # which takes the videos one by one
            assert np.array_equal(alone[0], together[2])
            return
        neighbours = samplers[target].sample(request((1, 1, 2), scale, cache=method))
    assert np.array_equal(neighbours[2], together[2]) and not np.array_equal(neighbours[0], together[0])
    # A product of other rows may differ in its last bits, with a schedule and without.
    assert error(alone[0], together[2]) <= 1e-5


@pytest.mark.parametrize("cache, waits", [(None, 0), ("every2-order2", 0), ("teacache", 4)])
def test_a_schedule_reads_nothing_from_the_device(cache, waits, samplers, monkeypatch):
    """Beyond the output of each call, which the solver takes; TeaCache reads a change in all calls but the ends."""
    read, asnumpy = [], ms.Tensor.asnumpy
    monkeypatch.setattr(ms.Tensor, "asnumpy", lambda tensor: read.append(1) or asnumpy(tensor))
    samplers["CPU"].sample(request([0], 4.0, cache=choose(cache, 0, WALK), steps=6))
    assert len(read) == 6 + waits


@SLOW
def test_two_graphs_serve_all_steps_and_halves_where_the_step_is_a_graph(real):
    method, before = cached("every2-order2", blocks=(1, 2)), compilations()
    with device.use("GPU"):
        made = LatentSampler(real.net).sample(request([0], cache=method))
    assert compilations() - before == 2
    assert error(made, real.sample(request([0], cache=method))) <= 1e-4


@pytest.mark.parametrize("solver", ["heun", "unipc"])
def test_a_schedule_of_every_step_is_no_schedule(solver, samplers):
    calls = Solver(solver).calls(4)
    every = Schedule(tuple(range(calls)), calls, (0, DEPTH), 2)
    options = {"solver": solver, "steps": 4}
    expected = samplers["CPU"].sample(request([0], **options))
    assert np.array_equal(samplers["CPU"].sample(request([0], cache=every, **options)), expected)


def test_a_schedule_by_hand(samplers):
    """Every second call adds what block 1 added before, extrapolated by the line through two timesteps."""
    net, solver, stored = samplers["CPU"].net, Solver("ddim"), {}
    labels = [ms.Tensor(values) for values in (LABELS[:1], np.array([5], np.int32))]

    def half(x, t, label, call):
        tokens, c = net.embed(ms.Tensor(x), ms.Tensor([t], ms.float32), label)
        tokens = net.run_blocks(tokens, c, 0, 1)
        history = stored.setdefault(int(label.asnumpy()[0]), [])
        if call in (0, 2, 4):
            inner = net.run_blocks(tokens, c, 1, 2)
            history.append((t, (inner - tokens).asnumpy()))
        else:
            (t0, r0), (t1, r1) = history[-2:] if len(history) > 1 else 2 * history[-1:]
            slope = (r1 - r0) / (t1 - t0) if t1 != t0 else 0.0
            inner = tokens + ms.Tensor((r1 + (t - t1) * slope).astype(np.float32))
        return net.finish(net.run_blocks(inner, c, 2, DEPTH), c).asnumpy()

    numbers = itertools.count()

    def model(x, t):
        call = next(numbers)
        cond, uncond = (half(x, t, label, call)[:, :, :4] for label in labels)
        return uncond + 4.0 * (cond - uncond)

    start = request([0]).noise().normal()
    *_, expected = solver.sample(model, start, STEPS)
    made = samplers["CPU"].sample(request([0], cache=cached("every2-order1", blocks=(1, 2))))
    assert error(made, expected) <= 1e-5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_residuals_are_extrapolated_by_the_polynomial_through_them(count):
    rng = np.random.default_rng(count)
    places, values = [300.0, 420.0, 555.0][:count], rng.normal(size=(3, 2, 5)).astype(np.float32)[:count]
    history = [(place, (ms.Tensor(value), ms.Tensor(2 * value))) for place, value in zip(places, values, strict=True)]
    powers = np.vander(np.array(places) / 1000, count)
    expected = np.vander([0.1], count) @ np.linalg.solve(powers, values.reshape(count, -1).astype(float))
    one, two = extrapolated(history, 100.0)
    assert error(one, expected.reshape(2, 5)) <= 1e-5 and error(two, 2 * expected.reshape(2, 5)) <= 1e-5


@pytest.mark.parametrize("cache", [None, "every2"])
def test_guidance_between_two_timesteps(cache, samplers):
    """Guided calls alone are guided, and where guidance begins all is computed."""
    sampler, solver = samplers["CPU"], Solver("ddim")
    method = caches.Nothing() if cache is None else cached(cache)
    made = sampler.sample(request([0], guidance_interval=(200.0, 700.0), cache=method))
    walk = solver.steps(STEPS).timesteps.tolist()
    begin = next(k for k, t in enumerate(walk) if t <= 700)
    parts = {guided: request([0], 4.0 if guided else 1.0) for guided in (True, False)}
    computed = set(range(STEPS)) if cache is None else {0, begin, 2, 4}
    whole = Schedule(tuple(sorted(computed)), STEPS, (0, DEPTH))
    denoisers = whole.start(sampler.graphs, WALK)
    x = parts[True].noise().normal()
    numbers, scale = itertools.count(), ms.Tensor(np.float32(4.0))
    labels = [ms.Tensor(LABELS[:1]), ms.Tensor(np.array([5], np.int32))]

    def model(x, t):
        guided = 200 <= t <= 700
        step = caches.Step(next(numbers), STEPS, t, guided)
        given = labels if guided else labels[:1]
        return denoisers(step, ms.Tensor(x), ms.Tensor([t], ms.float32), scale, *given).asnumpy()

    *_, expected = solver.sample(model, x, STEPS)
    assert 0 < begin < STEPS and np.array_equal(made, expected)


def test_teacache_decides_as_its_paper_says(samplers, monkeypatch):
    """Decisions by NumPy from what the network was called with: both halves of guidance together."""
    sampler, told = samplers["CPU"], []
    computes = teacache.Measured.computes

    def noted(self, step, x, t, *conditions):
        told.append((x.asnumpy().astype(float), step.timestep, computes(self, step, x, t, *conditions)))
        return told[-1][2]

    monkeypatch.setattr(teacache.Measured, "computes", noted)
    sampler.sample(request([0], 4.0, cache=teacache.TeaCache(0.5), steps=24))
    total, expected, before = 0.0, [], None
    for call, (x, t, _) in enumerate(told):
        now = np.concatenate([(x + 0.1 * label) * (1 + t / 1000) + label for label in (0.0, 1.0)])
        if call in (0, 23):
            expected.append(True)
        else:
            d = np.abs(now - before).mean() / np.abs(before).mean()
            total += -2464.34137 * d**4 + 308.044764 * d**3 + 80.7447667 * d**2 - 4.11385132 * d + 0.111001402
            expected.append(total >= 0.5)
        total, before = 0.0 if expected[-1] else total, now
    assert [decision for _, _, decision in told] == expected and 2 < sum(expected) < 20


def test_the_first_norm_of_a_latte(real):
    """What TeaCache looks at."""
    net = real.net
    weight, bias = (each.asnumpy().astype(float) for each in net.blocks[0].adaLN_modulation[1].weights())
    x = request([0]).noise().normal()
    tokens, c = net.embed(ms.Tensor(x), ms.Tensor([500.0], ms.float32), ms.Tensor([3], ms.int32))
    made, tokens, c = net.first_norm(tokens, c), tokens.asnumpy().astype(float), c[0].asnumpy().astype(float)
    shift, scale = np.split((c / (1 + np.exp(-c)) @ weight.T + bias)[:, None, None, :32], 2, axis=-1)
    norm = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
    assert error(made, norm * (1 + scale) + shift) <= 1e-5


@pytest.mark.parametrize("target", ["CPU", "GPU"])
@pytest.mark.parametrize("within", [None, "every3-order1"])
def test_fastercache_adds_its_two_bands_as_its_paper_says(within, target, samplers):
    """By NumPy: a shifted spectrum, a circle around its middle, weights that change sides.

    Within it another method may skip work in each half: by the calls in which that half is run.
    """
    sampler, steps = samplers[target], 11
    single = request([0], 4.0, steps=steps)
    numbers, kept = itertools.count(), {}
    walk = Walk("ddim", steps, steps, DEPTH)
    halves = {label: choose(within, 0, walk).start(samplers["CPU"].graphs, walk) for label in (0, 5)}

    def half(x, t, call, label):
        given = ms.Tensor(x), ms.Tensor([t], ms.float32), ms.Tensor(np.float32(4.0)), ms.Tensor([label], ms.int32)
        return halves[label](caches.Step(call, steps, t, False), *given).asnumpy()[:, :, :4].astype(float)

    def model(x, t):
        call = next(numbers)
        both = call < 4 or (call - 4) % 5 == 0  # 18 of 50 calls are 4 of 11
        outs = [half(x, t, call, label) for label in ((0, 5) if both else (0,))]
        outs = [*outs, outs[0]][:2]
        middle = np.hypot(*np.mgrid[-2:2, -2:2]) <= 4 // 5
        cond, uncond = (np.fft.fftshift(np.fft.fft2(out), (-2, -1)) for out in outs)
        if both:
            kept["low"], kept["high"] = (uncond - cond) * middle, (uncond - cond) * ~middle
        else:
            weights = (1.1, 1.0) if call < 10 else (1.0, 1.1)  # 45 of 50 calls are 10 of 11
            uncond = cond + weights[0] * kept["low"] + weights[1] * kept["high"]
            outs[1] = np.fft.ifft2(np.fft.ifftshift(uncond, (-2, -1))).real
        return (outs[1] + 4.0 * (outs[0] - outs[1])).astype(np.float32)

    *_, expected = single.solver.sample(model, single.noise().normal(), steps)
    name = "fastercache" if within is None else f"{within}+fastercache"
    with device.use(target):
        made = sampler.sample(dataclasses.replace(single, cache=choose(name, 0, walk)))
    passes, skipped = (sum(getattr(each, name) for each in halves.values()) for name in ("passes", "skipped"))
    assert error(made, expected) <= 1e-4 and passes == 17 and (skipped > 5) == (within is not None)
    assert sampler.skipped == (skipped + 5) / 22


@pytest.mark.parametrize("height, width", [(4, 4), (5, 9), (12, 20)])
def test_low_frequencies_are_those_that_a_mask_leaves(height, width):
    values = np.random.default_rng(0).normal(size=(2, 1, 3, height, width)).astype(np.float32)
    down, across = (np.minimum(np.arange(size), size - np.arange(size)) for size in (height, width))
    near = np.hypot(down[:, None], across) <= min(height, width) // 5
    low, high = fastercache.bands(ms.Tensor(values), ms.Tensor(fastercache.low_frequencies(height, width)))
    expected = np.fft.ifft2(np.fft.fft2(values) * near).real
    assert error(low, expected) <= 1e-6 and error(high, values - expected) <= 1e-6


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_latents_that_stay_on_the_device_are_the_same(solver, samplers):
    """With conditioning frames, new noise, and a callback that changes the latents of a step."""
    rng, seen = np.random.default_rng(0), []
    held = {"held": rng.normal(size=(2, 1, 4, 4, 4)).astype(np.float32), "held_frames": [1], "strength": 0.8}
    options = {"solver": solver, "steps": 8, "guidance_interval": (0.0, 700.0), **held}

    def change(step, latents):
        assert isinstance(latents, np.ndarray)
        seen.append(step)
        return 0.9 * latents if step == 1 else None

    made = {}
    for target in ("CPU", "GPU"):
        with device.use(target):
            made[target] = samplers[target].sample(request((0, 2), **options), callback=change)
    assert error(made["GPU"], made["CPU"]) <= 1e-5
    assert np.array_equal(made["GPU"][:, 1], held["held"][:, 0]) and seen.count(1) == 3  # one by one on a CPU
    count = len(samplers["GPU"].step_seconds)
    with device.use("GPU"):
        other = samplers["GPU"].sample(request((0, 2), **options))
    assert error(other, made["CPU"]) > 1e-3
    assert len(samplers["GPU"].step_seconds) - count == Solver(solver).calls(8, 0.8)


@pytest.mark.parametrize("cache", ["teacache:10", "fastercache:2", "threshold"])
def test_a_video_depends_on_no_other_whatever_the_method(cache, samplers):
    """Also where the device would take the videos as a batch."""
    method = choose(cache, 0, WALK)
    assert method.together == (cache == "fastercache:2")
    made = samplers["CPU"].sample(request((1, 2), 4.0, cache=method))
    assert np.array_equal(samplers["CPU"].sample(request([2], 4.0, cache=method))[0], made[1])


@pytest.mark.parametrize("solver, scale", [("unipc", 1.0), ("ddpm", 4.0)])
def test_the_error_of_a_pair_is_that_of_a_sampling_that_leaves_out_the_calls_between(solver, scale, samplers):
    single = request([1], scale, solver, steps=4)
    errors, full = schedule_search.error_table(samplers["CPU"], single, (0, DEPTH), 0, 3)
    assert np.array_equal(full, samplers["CPU"].sample(single))
    assert np.isfinite(errors).sum() == 4 + len(schedule_search.pairs_of(4, 3))
    for i, j in ((0, 3), (2, 4)):
        computed = tuple(k for k in range(4) if not i < k < j)
        made = samplers["CPU"].sample(dataclasses.replace(single, cache=Schedule(computed, 4, (0, DEPTH))))
        assert errors[i, j] > 0 and errors[i, j] == schedule_search.relative_error(made, full)


def test_no_pair_reaches_over_the_begin_of_guidance(samplers):
    single = request([0], 4.0, guidance_interval=(100.0, 600.0))
    errors, _ = schedule_search.error_table(samplers["CPU"], single, (0, DEPTH), 1, 3)
    begin = next(k for k, t in enumerate(Solver("ddim").steps(STEPS).timesteps) if t <= 600)
    over = [(i, j) for i, j in schedule_search.pairs_of(STEPS, 3) if i < begin < j]
    assert over and all(np.isinf(errors[pair]) for pair in over)
    assert np.isfinite(errors[begin, begin + 2]) and np.isfinite(errors[begin - 2, begin])


def test_the_found_schedule_is_the_best_of_all():
    """Of every choice of calls, by the errors of its pairs from the largest on."""
    calls, gap, rng = 8, 4, np.random.default_rng(3)
    for _ in range(5):
        errors = np.full((calls, calls + 1), np.inf)
        errors[range(calls), range(1, calls + 1)] = 0.0
        for i, j in schedule_search.pairs_of(calls, gap):
            errors[i, j] = rng.integers(1, 6) / 10  # with ties
        found = schedule_search.best_paths(errors, calls)
        assert min(found) == 2 and max(found) == calls
        for count, best in found.items():
            options = []
            for rest in itertools.combinations(range(1, calls), count - 1):
                path = (0, *rest, calls)
                listed = [errors[pair] for pair in itertools.pairwise(path)]
                if np.isfinite(listed).all():
                    options.append((tuple(sorted((e for e in listed if e > 0), reverse=True)), path[:-1]))
            assert best.errors == min(options)[0] and (best.errors, best.computed) in options


def test_a_schedule_is_refined_as_long_as_that_is_better():
    measured = []

    def measure(computed):
        measured.append(computed)
        return float(sum(abs(a - b) for a, b in zip(computed, (0, 2, 3, 7), strict=True)))

    start = (0, 4, 5, 6)
    assert schedule_search.refined(start, measure(start), measure, 8, 99) == ((0, 2, 3, 7), 0.0)
    assert len(set(measured)) == len(measured) and all(sorted(set(path)) == [*path] for path in measured)
    assert max(path[-1] for path in measured) == 7 and all(path[0] == 0 for path in measured)
    assert schedule_search.refined(start, 5.0, measure, 8, 0) == (start, 5.0)


CHECKPOINT = ("--checkpoint", FIXTURES / "latte_class.pt", "--vae_checkpoint", FIXTURES / "vae.bin")
SEARCH = (*CHECKPOINT, "--sampling_steps", 3, "--sampler", "ddim", "--class_labels", "[2]")


def words(*given):
    return [str(word) for word in given]


def test_a_schedule_is_found_written_and_sampled_with(tmp_path, capsys):
    file = tmp_path / "found.json"
    given = (*SEARCH, "--calls", 2, "--max_gap", 3, "--refine", 1, "-o", file)
    schedule.main(words(*given, "--dry_run"))
    said = capsys.readouterr().out
    assert f"by {schedule_search.cost(3, 3, [2]) + 2} network calls" in said and not any(tmp_path.iterdir())
    schedule.main(words(*given))
    assert {path.name for path in tmp_path.iterdir()} == {"found.json", "found.csv", "found.png"}
    content = json.loads(file.read_text())
    assert len(content["computed"]) == 2 and content["model"] == model_of(tiny("class"))
    header, *rows = [line.split(",") for line in (tmp_path / "found.csv").read_text().splitlines()]
    assert header == ["calls", "largest_pair_error", "found", "even"] and [row[0] for row in rows] == ["1", "2"]
    pipe = LattePipeline.from_pretrained(*CHECKPOINT[1::2])
    quiet = {"class_labels": 2, "seed": 42, "sampler": "ddim", "output_type": "latent", "progress": False}
    full, made = (pipe(num_inference_steps=3, cache=cache, **quiet).frames for cache in (None, file))
    assert pipe.latents.skipped == pytest.approx(1 / 3)
    assert schedule_search.relative_error(made, full) == pytest.approx(content["found"]["refined"])
    assert content["found"]["refined"] <= min(map(float, rows[1][2:]))
    with pytest.raises(UserError, match="for steps 3, but the sampling has steps 6"):
        pipe(num_inference_steps=6, cache=file, **quiet)


def test_videos_are_made_from_what_is_in_a_schedule_whatever_its_name(tmp_path):
    for name, content in (("a", GOOD), ("b", GOOD), ("c", GOOD | {"computed": [0, 3]})):
        (tmp_path / name).write_text(json.dumps(content))
    one, same, other = (caches.facts(str(tmp_path / name)) for name in "abc")
    assert one == same != other and str(tmp_path) not in one
    assert [caches.facts(name) for name in (None, "every2", "threshold:0.1")] == [None, "every2", "threshold:0.1"]
    assert caches.facts(f"{tmp_path / 'a'}+fastercache:3") == f"{one}+fastercache:3"
    assert caches.opened("every2+fastercache") == "every2+fastercache"


def test_another_model_is_warned_of(real, caplog, tmp_path):
    other = Schedule((0,), 2, (0, DEPTH), 0, "ddim", 2, "0" * 16, source=str(tmp_path / "other.json"))
    other.save(tmp_path / "other.json")
    assert read_schedule(tmp_path / "other.json") == other
    for _ in range(2):
        other.start(real.graphs, WALK)
    assert caplog.text.count("other.json was found with other weights") == 1


@pytest.mark.parametrize(
    "change, said",
    [
        ({"solver": "unipc"}, "is a schedule for solver unipc, but the sampling has solver ddim"),
        ({"steps": 9}, "is a schedule for steps 9, but the sampling has steps 5"),
        ({"calls": 9}, "for 9 network calls and 3 blocks or more, but the sampling has 5 and 3"),
        ({"blocks": [0, 6]}, "6 blocks or more"),
        ({"blocks": [2, 2]}, "blocks be a range"),
        ({"blocks": [0]}, "lists of whole numbers"),
        ({"computed": [1, 2]}, "must rise from 0 to below 5"),
        ({"computed": [0, 2, 2]}, "must rise from 0 to below 5"),
        ({"computed": [0, 5]}, "must rise from 0 to below 5"),
        ({"computed": [0, True]}, "lists of whole numbers"),
        ({"order": 3}, "order must be a whole number from 0 to 2"),
        ({"model": None}, "is no schedule: model is None"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(change, said, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(GOOD | change))
    with pytest.raises(UserError, match=said) as caught:
        choose(tmp_path / "a.json", 0, WALK)
    assert "a.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "cache, old, said",
    [
        ("nowhere.json", 0, "neither a file nor a method"),
        ("calls1", 0, "must ask for 2 to 5"),
        ("calls6", 0, "must ask for 2 to 5"),
        ("threshold:x", 0, "neither a file nor a method"),
        ("threshold:1.2.3", 0, "no number behind its colon"),
        ("fastercache:2.5", 0, "no whole number behind its colon"),
        ("nowhere.json+fastercache", 0, "nowhere.json' is neither a file nor a method"),
        ("calls9+fastercache:3", 0, "must ask for 2 to 5"),
        ("threshold:2", 0, "number must be a number from 0 to 1"),
        ("every2", 0.1, "leave one out"),
        (3, 0, "cache is 3, but must be a name"),
    ],
)
def test_what_is_no_cache(cache, old, said):
    with pytest.raises(UserError, match=said):
        choose(cache, old, WALK)


def test_names_of_schedules():
    assert choose("every3", 0, WALK).computed == (0, 3, 4) and choose("every1", 0, WALK).computed == (*range(STEPS),)
    assert choose("calls3-order2", 0, WALK) == Schedule((0, 2, 4), STEPS, (0, DEPTH), 2, source="calls3-order2")
    assert choose("threshold", 0, WALK) == choose("threshold:0.05", 0, WALK) == choose(None, 0.05, WALK)


@pytest.mark.parametrize("interval, scale, said", [([3], 2, "two timesteps"), ([5, 3], 2, "two timesteps")])
def test_what_is_no_guidance_interval(interval, scale, said):
    with pytest.raises(UserError, match=said):
        inputs.check_interval(interval, scale)


def test_an_interval_without_guidance_is_refused():
    with pytest.raises(UserError, match="given without guidance"):
        inputs.check_interval([0, 500], 1.0)


@pytest.mark.parametrize(
    "more, said",
    [
        (("--calls", 4), "must be from 1 to 3"),
        (("--blocks", "[0,9]"), "has 4; name a range"),
        (("--search_videos", 2), "raise num_samples"),
        (("--cache", "every2"), "the search is for videos without it"),
        (("-o", "found.txt"), "ends with .json"),
    ],
)
def test_searches_that_are_refused(more, said, tmp_path):
    given = (*SEARCH, "--calls", 2, "--max_gap", 3, "-o", tmp_path / "found.json", *more)
    with pytest.raises(UserError, match=said):
        schedule.main(words(*given))
    assert not any(tmp_path.iterdir())

"""Ranks with other options, versions, data or weights end before the first step, each with the same sentence."""

import threading
import types

import mindspore as ms
import numpy as np
import pytest

from latte.config import TrainConfig
from latte.errors import UserError
from latte.training import agreement, collective
from latte.weights.fingerprint import base_fingerprint


@pytest.fixture
def on_ranks(monkeypatch):
    """Call a function with each of some arguments, every one on a rank of its own; return results or errors."""
    here = threading.local()
    alone = types.SimpleNamespace(rank=0, world_size=1, compile_scope="block")
    monkeypatch.setattr(collective.device, "current", lambda: getattr(here, "device", alone))

    def call(function, *arguments):
        world, parts, results = len(arguments), {}, {}
        barrier = threading.Barrier(world, timeout=20)

        def add_up(tensors):
            parts[here.device.rank] = tensors[0].asnumpy()
            barrier.wait()
            total = np.sum([parts[rank] for rank in range(world)], axis=0, dtype=np.float32)
            barrier.wait()
            return (ms.Tensor(total),)

        def run(rank):
            here.device = types.SimpleNamespace(rank=rank, world_size=world)
            try:
                results[rank] = function(arguments[rank])
            except UserError as error:
                results[rank] = str(error)

        monkeypatch.setattr(collective, "_compiled_sum", lambda: add_up)
        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [results[rank] for rank in range(world)]

    return call


def config(**options):
    return TrainConfig(**options)


@pytest.mark.parametrize("texts", [["", "", ""], ["a", "", "ü" * 5000], ["x" * 4096, "y", "\0"]])
def test_every_rank_gets_the_texts_of_all_whatever_their_length(texts, on_ranks):
    assert on_ranks(collective.gather, *texts) == [texts] * 3
    assert on_ranks(collective.agree_on, "", texts[2], "") == [texts[2]] * 3


@pytest.mark.parametrize("flags", [(False, False), (True, False), (True, True)])
def test_one_rank_that_stops_stops_all(flags, on_ranks):
    assert on_ranks(collective.any_rank, *flags) == [any(flags)] * 2
    assert on_ranks(collective.any_rank, flags[0]) == [flags[0]]


@pytest.mark.parametrize(
    "other, said",
    [
        ({"start_learning_rate": 0.1}, "start_learning_rate is 0.0001 on rank 0, but 0.1 on rank 1; start every rank"),
        ({"max_steps": 10}, "max_steps is null on rank 0, but 10 on rank 1; "),
        ({"depth": 4, "seed": 9}, "depth is null on rank 0, but 4 on rank 1 (and other values of seed)"),
        ({"cache_folder": "cache"}, "cache_folder is null on rank 0, but not null on rank 1"),
    ],
)
def test_ranks_with_other_options_all_say_which(other, said, on_ranks):
    results = on_ranks(agreement.check_options, config(), config(**other), config())
    assert len(set(results)) == 1 and said in results[0]


def test_paths_workers_and_devices_may_differ(on_ranks):
    first = config(data_folder="/a", vae_checkpoint="/a/vae", num_workers=1, device_id=0, output_path="a")
    second = config(data_folder="/b", vae_checkpoint="/b/vae", num_workers=8, device_id=3, output_path="b")
    assert on_ranks(agreement.check_options, first, second) == [None, None]


def test_ranks_with_another_mindspore_say_so(on_ranks):
    results = on_ranks(collective.check_same, {"MindSpore": "2.10.0"}, {"MindSpore": "2.9.0"})
    assert set(results) == {
        "MindSpore is 2.10.0 on rank 0, but 2.9.0 on rank 1; start every rank with the same options, versions, data "
        "and weights"
    }


def training(paths=("a", "b"), label=0, scale=1.0):
    net = ms.nn.Dense(2, 2)
    net.bias.set_data(ms.Tensor(np.full(2, scale, np.float32)))
    records = [types.SimpleNamespace(path=types.SimpleNamespace(name=path), label=label, caption="") for path in paths]
    index = types.SimpleNamespace(records=records, images=[])
    return types.SimpleNamespace(
        source=types.SimpleNamespace(dataset=types.SimpleNamespace(index=index)),
        step=types.SimpleNamespace(start=base_fingerprint({"bias": net.bias.asnumpy()})),
        codec=types.SimpleNamespace(vae=net),
        total_steps=3,
        config="a network",
    )


@pytest.mark.parametrize(
    "other, said",
    [
        ({}, None),
        ({"paths": ("a",)}, "the number of videos is 2 on rank 0, but 1 on rank 1"),
        ({"label": 1}, "the list of videos (its SHA-256) is "),
        ({"scale": 2.0}, "the network (SHA-256 of its biases) is "),
    ],
)
def test_ranks_with_other_data_or_weights_all_say_so(other, said, on_ranks):
    results = on_ranks(agreement.check_training, training(), training(**other))
    assert results == [None, None] if said is None else all(said in result for result in results)

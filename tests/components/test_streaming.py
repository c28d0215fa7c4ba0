"""T5 read block by block: to the bit what the whole encoder computes, with the memory of one block."""

import json
import subprocess
import sys

import numpy as np
import pytest
from support.golden_values import FIXTURES, ROOT

from latte.components import streaming
from latte.components.convert import convert_folder
from latte.components.text_encoder import Prompts, load_text_encoder
from latte.models.t5 import T5Config, T5Encoder
from latte.runtime import device
from latte.weights.files import write_state_dict

FOLDER = FIXTURES / "latte_t2v"
PROMPTS = ["a dog", "", "two cats in the rain", "a dog"]
WIDE = {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 8, "num_heads": 16, "vocab_size": 16000}


@pytest.mark.parametrize(
    "dtype, quantize", [("fp32", None), ("fp32", "int8"), pytest.param("fp16", None, marks=pytest.mark.slow)]
)
def test_the_vectors_are_those_of_the_whole_encoder(dtype, quantize):
    whole, streamed = (load_text_encoder(FOLDER, dtype, quantize, stream=stream) for stream in (False, True))
    expected, _ = whole.encode(PROMPTS)
    for _ in range(2):
        found, mask = streamed.encode(PROMPTS)
        assert found.dtype == np.float32 and np.array_equal(found, expected) and mask.shape == (4, 120)
    assert np.array_equal(streamed.encode(PROMPTS[:1], max_length=7)[0], whole.encode(PROMPTS[:1], max_length=7)[0])
    streamed.release()
    with pytest.raises(RuntimeError, match="was released"):
        streamed.encode(PROMPTS)


@pytest.mark.parametrize("scope", ["step", "none"])
def test_where_the_block_is_one_graph_or_none(scope):
    expected, _ = load_text_encoder(FOLDER).encode(PROMPTS)
    with device.use({"step": "GPU"}.get(scope, "CPU"), graph_mode=scope != "none") as here:
        assert here.compile_scope == scope
        found, _ = load_text_encoder(FOLDER, stream=True).encode(PROMPTS)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_files_of_int8_are_read_as_they_are(tmp_path):
    convert_folder(FOLDER, tmp_path / "x", "safetensors", "int8", "text_encoder,tokenizer")
    found = [load_text_encoder(tmp_path / "x", stream=stream).encode(PROMPTS)[0] for stream in (False, True)]
    assert np.array_equal(*found)


def test_each_block_is_read_once_for_all_prompts_and_a_kept_encoder_is_whole(monkeypatch):
    read, take = [], streaming.StreamedT5._read_block
    monkeypatch.setattr(
        streaming.StreamedT5, "_read_block", lambda self, number: read.append(number) or take(self, number)
    )
    expected = [Prompts(FOLDER, keep=keep).encode(["a dog", "a cat"])[0] for keep in (True, False)]
    assert read == [0, 1] and np.array_equal(*expected)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A folder whose encoder has layers of T5-large's size; T5-XXL's is 19 GB."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "text_encoder").mkdir()
    (folder / "tokenizer").symlink_to(FOLDER / "tokenizer")
    config = json.loads((FOLDER / "text_encoder" / "config.json").read_text()) | WIDE
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))
    rng, shapes = np.random.default_rng(0), T5Encoder(T5Config(**WIDE)).parameters_and_names()
    values = {
        name: rng.standard_normal(weight.shape, np.float32) * np.float32(0.02 if weight.ndim > 1 else 1)
        for name, weight in shapes
    }
    write_state_dict(folder / "text_encoder" / "model.safetensors", values, {})
    return folder


MEMORY = """
import gc, sys, threading, time
import numpy as np, psutil
from latte.components.text_encoder import load_text_encoder
from latte.runtime import device
device.init_device("CPU")
load_text_encoder(sys.argv[1]).encode(["a cat"])  # compiles, and imports what reads tokenizers
gc.collect()
process, running, peak = psutil.Process(), True, 0

def watch():
    global peak
    while running:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.001)

before, watching = process.memory_info().rss, threading.Thread(target=watch)
watching.start()
hidden, _ = load_text_encoder(sys.argv[2], stream=sys.argv[3] == "True").encode(["a dog", "a cat"])
running = False
watching.join()
np.save(sys.argv[4], hidden)
print(peak - before)
"""


@pytest.mark.slow
def test_the_peak_is_a_block_and_not_the_encoder(wide, tmp_path):
    """In processes of their own; one layer is 51 MB, all of them and the table 477 MB."""
    config = T5Config(**WIDE)
    layer, whole = (4 * each.parameter_count for each in (config.smallest(), config))
    peaks, hidden = [], []
    for stream in (False, True):
        words = [str(FOLDER), str(wide), str(stream), str(tmp_path / f"{stream}.npy")]
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, *words], capture_output=True, text=True, check=True, cwd=ROOT
        )
        peaks.append(int(done.stdout.split()[-1]))
        hidden.append(np.load(words[-1]))
    print([f"{size / 1e6:.0f} MB" for size in (layer, whole, *peaks)])
    assert np.array_equal(*hidden)
    assert peaks[0] > 0.95 * whole and peaks[1] < layer + 0.25 * whole

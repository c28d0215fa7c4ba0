"""The text encoder of the demo data: it is read as any CLIP, and tells the captions apart."""

import itertools

import numpy as np
import pytest

from latte.commands import demo_data
from latte.components.text_encoder import load_text_encoder, read_encoder
from latte.data.demo import CLASSES, caption

ARGUMENTS = ["--clips", "1", "--num_frames", "2", "--size", "16", "--formats", "[frames]", "--text_encoder", "true"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    demo_data.main(["--folder", str(root), *ARGUMENTS])
    return root / "clip"


def test_its_words_are_those_of_the_captions(folder):
    captions = sorted({caption(label, seed) for label in range(len(CLASSES)) for seed in range(8)})
    assert len(captions) == 2 * len(CLASSES)
    encoder = load_text_encoder(folder, weights=read_encoder(folder, "clip", 768), kind="clip")
    _, mask = encoder.tokenize(captions)
    assert mask.sum(1).tolist() == [len(text.split()) + 2 for text in captions]  # with a mark at each end
    text, _ = encoder.encode([*captions, "", "a word that it does not know: Übermut"])
    assert text.shape == (8, 77, 768) and np.isfinite(text).all()
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(text, 2)]
    assert min(apart) > 0.1 * np.linalg.norm(text[0])


def test_a_second_start_leaves_it_as_it_is(folder):
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}
    demo_data.main(["--folder", str(folder.parent), *ARGUMENTS])
    assert {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()} == before

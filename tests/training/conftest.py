"""The captioned clips and their cache that the tests of text-to-video training share."""

import pytest
from support.t2v import cached, write_captioned


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_captioned(tmp_path_factory.mktemp("captioned"))


@pytest.fixture(scope="module")
def cache(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return cached(data, tmp_path_factory.mktemp("t2v") / "cache", patch)

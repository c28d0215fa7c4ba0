"""The stand-in's channels, by which data sets reach the device: what goes in comes out, once and in order."""

import ctypes
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from ascend import standin

if reason := standin.why_not():
    pytest.skip(reason, allow_module_level=True)

TENSOR, END = 0, 1
FLOAT32 = 0
STOPPED, EMPTY, FULL = 500000, 207013, 207014
PROGRAM = """
import numpy as np, mindspore as ms
ms.set_device("Ascend")
x = np.arange(24, dtype=np.float32).reshape(8, 3)
data = ms.dataset.NumpySlicesDataset((x, np.ones((8, 3), np.float32)), ["x", "y"], shuffle=False)


def add(x, y):
    return x + y


sink = ms.data_sink(add, data, sink_size=2, jit_config=ms.JitConfig(jit_level="O0"))
print([sink().asnumpy().tolist() for _ in range(4)])
"""


class Channels:
    """The library, with handles as pointers."""

    def __init__(self, libraries):
        self.core = ctypes.CDLL(str(libraries / "libascendcl.so"), mode=ctypes.RTLD_GLOBAL)
        self.core.aclGetRecentErrMsg.restype = ctypes.c_char_p
        self.loaded = ctypes.CDLL(str(libraries / "libacl_tdt_channel.so"))
        for name in (
            "CreateChannelWithCapacity",
            "CreateDataset",
            "CreateDataItem",
            "GetDataItem",
            "GetDataAddrFromItem",
        ):
            getattr(self.loaded, f"acltdt{name}").restype = ctypes.c_void_p

    def __call__(self, name, *arguments):
        passed = [ctypes.c_void_p(value) if isinstance(value, int) and value > 2**31 else value for value in arguments]
        return getattr(self.loaded, name)(*passed)

    def create(self, name, capacity=2):
        return self("acltdtCreateChannelWithCapacity", 0, name.encode(), ctypes.c_size_t(capacity))

    def item(self, array):
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        data, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        return self("acltdtCreateDataItem", TENSOR, dims, ctypes.c_size_t(array.ndim), FLOAT32, data, size)

    def send(self, channel, *arrays, wait=-1):
        batch = self("acltdtCreateDataset")
        items = [self.item(array) for array in arrays] or [self("acltdtCreateDataItem", END, None, 0, 12, None, 0)]
        for item in items:
            assert self("acltdtAddDataItem", batch, item) == 0
        code = self("acltdtSendTensor", channel, batch, wait)
        for item in items:
            self("acltdtDestroyDataItem", item)
        self("acltdtDestroyDataset", batch)
        return code

    def receive(self, channel, wait=10):
        """Return the tensors that come, or the code."""
        batch = self("acltdtCreateDataset")
        if code := self("acltdtReceiveTensor", channel, batch, wait):
            return code
        arrays = []
        for number in range(self("acltdtGetDatasetSize", batch)):
            item = self("acltdtGetDataItem", batch, ctypes.c_size_t(number))
            dims = (ctypes.c_int64 * self("acltdtGetDimNumFromItem", item))()
            assert self("acltdtGetDimsFromItem", item, dims, ctypes.c_size_t(len(dims))) == 0
            pointer = ctypes.cast(self("acltdtGetDataAddrFromItem", item), ctypes.POINTER(ctypes.c_float))
            arrays.append(np.ctypeslib.as_array(pointer, tuple(dims)).copy())
        self("acltdtDestroyDataset", batch)
        return arrays

    def next(self, name, *outputs):
        pointers = (ctypes.c_void_p * len(outputs))(*(output.ctypes.data for output in outputs))
        sizes = (ctypes.c_size_t * len(outputs))(*(output.nbytes for output in outputs))
        return self("standin_next", name.encode(), ctypes.c_size_t(len(outputs)), pointers, sizes)

    def sentence(self):
        return self.core.aclGetRecentErrMsg().decode()


@pytest.fixture(scope="module")
def channels():
    return Channels(standin.build() / "lib64")


@pytest.fixture
def channel(channels, request):
    handle = channels.create(request.node.name)
    yield handle
    channels("acltdtDestroyChannel", handle)


def arrays(number):
    return np.full((2, 3), number, np.float32), np.arange(5, dtype=np.float32) + number


def test_what_is_sent_is_received_in_order(channels, channel):
    for number in (1, 2):
        assert channels.send(channel, *arrays(number)) == 0
    for number in (1, 2):
        for found, expected in zip(channels.receive(channel), arrays(number), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert channels.receive(channel) == EMPTY


def test_a_full_channel_makes_the_sender_wait(channels, channel):
    assert [channels.send(channel, *arrays(number), wait=10) for number in range(3)] == [0, 0, FULL]
    sender = threading.Thread(target=channels.send, args=(channel, *arrays(7)))
    sender.start()
    time.sleep(0.1)
    assert sender.is_alive()
    numbers = [channels.receive(channel, 1000)[0][0, 0] for _ in range(3)]
    sender.join(5)
    assert numbers == [0, 1, 7] and not sender.is_alive()


def test_a_channel_that_stops_lets_the_sender_go(channels, channel):
    codes = []
    channels.send(channel, *arrays(0))
    channels.send(channel, *arrays(1))
    sender = threading.Thread(target=lambda: codes.append(channels.send(channel, *arrays(2))))
    sender.start()
    time.sleep(0.1)
    assert channels("acltdtStopChannel", channel) == 0
    sender.join(5)
    assert codes == [STOPPED]


def test_get_next_takes_the_batch_that_was_sent_first(channels, channel, request):
    for number in (1, 2):
        channels.send(channel, *arrays(number))
    for number in (1, 2):
        found = [np.zeros_like(array) for array in arrays(number)]
        assert channels.next(request.node.name, *found) == 0
        for output, expected in zip(found, arrays(number), strict=True):
            np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize(
    "shapes, said",
    [
        (((2, 3),), "GetNext: the batch has 2 tensors, but 1 are asked for"),
        (((2, 3), (4,)), "GetNext: tensor 1 has 20 bytes, but its output 16"),
    ],
)
def test_get_next_refuses_a_batch_of_another_shape(shapes, said, channels, channel, request):
    channels.send(channel, *arrays(1))
    assert channels.next(request.node.name, *(np.zeros(shape, np.float32) for shape in shapes)) != 0
    assert channels.sentence() == said


def test_get_next_fails_at_the_end_of_the_data(channels, channel, request):
    assert channels.send(channel) == 0  # no tensor: the end
    assert channels.next(request.node.name, *arrays(0)) != 0
    assert channels.sentence() == f"GetNext: the data of channel {request.node.name} has ended"
    assert channels.next("another", *arrays(0)) != 0 and channels.sentence() == "GetNext: there is no channel another"


def test_a_channel_is_made_once(channels, channel, request):
    assert channels.create(request.node.name) is None
    assert "is there already" in channels.sentence()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["compute", "plan"])
def test_a_data_set_is_sunk_to_the_device(mode, tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        env=standin.environment(mode, trace=trace),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if mode == "compute":
        assert done.stdout.splitlines()[-1] == str([[3.0 * k + n for n in (1, 2, 3)] for k in (1, 3, 5, 7)])
    assert standin.launches(trace)["GetNext"] == standin.launches(trace)["aclnnAdd"] == 8
    assert "failed to receive tensor" not in done.stderr

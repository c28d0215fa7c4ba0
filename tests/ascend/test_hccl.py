"""The stand-in's HCCL between processes: its numbers beside NumPy's, what it refuses, and ranks that die."""

import json
import os
import signal
import time

import numpy as np
import pytest
from ascend import standin
from support.hccl_ranks import COMM, PARENT, Ranks, config

if reason := standin.why_not():
    pytest.skip(reason, allow_module_level=True)

TYPES = ["int8", "int16", "int32", "float16", "float32", "int64", "uint64", "uint8", "uint16", "uint32", "float64"]
TYPES.append("bfloat16")  # as uint16
REDUCTIONS = ["sum", "prod", "max", "min"]
REDUCED = ["int8", "int16", "int32", "int64", "float16", "float32", "bfloat16"]
NUMPY = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}
LONG = 700_001  # elements: more than go through the shared memory at once, in no whole number of rounds
FLOAT32, INT32, SUM = TYPES.index("float32"), TYPES.index("int32"), 0


@pytest.fixture(scope="module")
def libraries():
    return standin.build() / "lib64"


@pytest.fixture(scope="module")
def two(libraries):
    ranks = Ranks(2, libraries)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def four(libraries):
    ranks = Ranks(4, libraries)
    yield ranks
    ranks.close()


@pytest.fixture(params=["two", "four"])
def ranks(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def start(libraries):
    """Start ranks that the test may break."""
    started = []

    def run(number, joins=True, **environment):
        started.append(Ranks(number, libraries, environment, joins))
        return started[-1]

    yield run
    for each in started:
        each.close()


def values(dtype, ranks, *shape, seed=0):
    """Return an array per rank; bfloat16 as its upper halves."""
    rng = np.random.default_rng(seed)
    if dtype == "bfloat16":
        return [to_bfloat16(rng.normal(size=shape).astype(np.float32)) for _ in range(ranks)]
    if dtype.startswith("float"):
        return [rng.normal(size=shape).astype(dtype) for _ in range(ranks)]
    limits = np.iinfo(dtype)
    return [rng.integers(limits.min, limits.max, shape, dtype, endpoint=True) for _ in range(ranks)]


def to_bfloat16(x):
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def wide(x, dtype):
    """Return the values as reductions take them: float32, or integers as they are."""
    if dtype == "bfloat16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32) if dtype == "float16" else x


def reduced(arrays, dtype, reduction):
    """Return the reduction in the order of the ranks, rounded once."""
    total = wide(arrays[0], dtype)
    with np.errstate(over="ignore"):
        for array in arrays[1:]:
            total = NUMPY[reduction](total, wide(array, dtype))
        return to_bfloat16(total) if dtype == "bfloat16" else total.astype(arrays[0].dtype)


def results(answers):
    """Return the last array of each rank's call; what a call writes is last among its arrays here."""
    for answer in answers:
        assert answer.code == 0, answer.sentence
    return [answer.arrays[-1] for answer in answers]


def empty(source, *shape):
    return np.full(shape, 99, source.dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", REDUCED)
def test_all_reduce_is_numpys_reduction(dtype, reduction, ranks):
    number = len(ranks.pipes)
    given = values(dtype, number, 1001)
    arguments = [
        given,
        [empty(given[0], 1001)] * number,
        1001,
        TYPES.index(dtype),
        REDUCTIONS.index(reduction),
        COMM,
        0,
    ]
    answers = ranks.call("HcclAllReduce", *arguments)
    if reduction == "prod" and dtype in ("int16", "bfloat16"):
        assert {answer.code for answer in answers} == {5}
        assert answers[0].sentence == f"HcclAllReduce: prod is not there for {dtype}"
        return
    for result in results(answers):
        np.testing.assert_array_equal(result, reduced(given, dtype, reduction))


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_long_tensors_pass_in_several_rounds(dtype, ranks):
    number, kind = len(ranks.pipes), TYPES.index(dtype)
    given = values(dtype, number, LONG)
    for result in results(ranks.call("HcclAllReduce", given, given, LONG, kind, SUM, COMM, 0)):  # in place
        np.testing.assert_array_equal(result, reduced(given, dtype, "sum"))
    gathered = [empty(given[0], number * LONG)] * number
    for result in results(ranks.call("HcclAllGather", given, gathered, LONG, kind, COMM, 0)):
        np.testing.assert_array_equal(result, np.concatenate(given))
    parts = values(dtype, number, number, LONG // 2)
    answers = ranks.call(
        "HcclReduceScatter", parts, [empty(given[0], LONG // 2)] * number, LONG // 2, kind, SUM, COMM, 0
    )
    for rank, result in enumerate(results(answers)):
        np.testing.assert_array_equal(result, reduced([part[rank] for part in parts], dtype, "sum"))
    ranks.call("HcclBarrier", COMM, 0)
    back = [empty(part, *part.shape) for part in parts]
    answers = ranks.call("HcclAlltoAll", parts, LONG // 2, kind, back, LONG // 2, kind, COMM, 0)
    for rank, result in enumerate(results(answers)):
        np.testing.assert_array_equal(result, [part[rank] for part in parts])


def test_sums_of_halves_are_rounded_once_to_nearest_even(two):
    ulp = 2.0**-10
    first = np.array([1, 1 + ulp, 65504, 2**-24, 6e-5, np.inf, np.nan], np.float16)
    second = np.array([ulp / 2, ulp / 2, 16, 2**-24, -1e-7, 1, 1], np.float16)
    answers = two.call("HcclAllReduce", [first, second], [empty(first, 7)] * 2, 7, TYPES.index("float16"), SUM, COMM, 0)
    expected = reduced([first, second], "float16", "sum")
    assert expected[0] == 1 and expected[1] == np.float16(1 + 2 * ulp) and expected[2] == np.inf
    for result in results(answers):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_data_of_every_dtype_goes_where_it_should(dtype, ranks):
    number, kind = len(ranks.pipes), TYPES.index(dtype)
    given = values(dtype, number, number, 5)
    one = given[0]
    for result in results(
        ranks.call("HcclAllGather", given, [empty(one, number, number, 5)] * number, 5 * number, kind, COMM, 0)
    ):
        np.testing.assert_array_equal(result, given)
    for result in results(ranks.call("HcclBroadcast", given, 5 * number, kind, 1, COMM, 0)):
        np.testing.assert_array_equal(result, given[1])
    answers = ranks.call("HcclAlltoAll", given, 5, kind, [empty(one, number, 5)] * number, 5, kind, COMM, 0)
    for rank, result in enumerate(results(answers)):
        np.testing.assert_array_equal(result, [part[rank] for part in given])
    for rank, result in enumerate(
        results(ranks.call("HcclScatter", given, [empty(one, 5)] * number, 5, kind, 1, COMM, 0))
    ):
        np.testing.assert_array_equal(result, given[1][rank])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reduce_scatter_and_reduce_are_numpys_reductions(reduction, ranks):
    number, kind = len(ranks.pipes), REDUCTIONS.index(reduction)
    given = values("float32", number, number, 5)
    expected = reduced(given, "float32", reduction)
    answers = ranks.call("HcclReduceScatter", given, [empty(given[0], 5)] * number, 5, FLOAT32, kind, COMM, 0)
    np.testing.assert_array_equal(results(answers), expected)
    answers = ranks.call(
        "HcclReduce", given, [empty(given[0], number, 5)] * number, 5 * number, FLOAT32, kind, 1, COMM, 0
    )
    found = results(answers)
    np.testing.assert_array_equal(found[1], expected)
    assert (found[0] == 99).all()  # only the root gets it


def test_parts_of_different_sizes_are_exchanged(four):
    counts = np.random.default_rng(0).integers(0, 9, (4, 4)).astype(np.uint64)  # of rank i for rank j
    counts[2, 1] = 300_000  # many rounds for one pair only
    given = [np.arange(counts[rank].sum(), dtype=np.int32) + 10**6 * rank for rank in range(4)]
    starts = [np.concatenate([[0], np.cumsum(counts[rank])[:-1]]).astype(np.uint64) for rank in range(4)]
    expected = [
        np.concatenate([given[r][int(starts[r][rank]) :][: int(counts[r, rank])] for r in range(4)])
        for rank in range(4)
    ]
    room = [np.zeros(len(array), np.int32) for array in expected]
    answers = four.call("HcclAlltoAllVC", given, counts, INT32, room, INT32, COMM, 0)
    for rank, result in enumerate(results(answers)):
        np.testing.assert_array_equal(result, expected[rank])

    gaps = [
        np.concatenate([[0], np.cumsum(counts[:, rank] + np.uint64(1))[:-1]]).astype(np.uint64) for rank in range(4)
    ]
    room = [np.zeros(len(array) + 3, np.int32) for array in expected]
    receives = [counts[:, rank].copy() for rank in range(4)]
    sends = [counts[rank].copy() for rank in range(4)]
    answers = four.call("HcclAlltoAllV", given, sends, starts, INT32, room, receives, gaps, INT32, COMM, 0)
    for rank, answer in enumerate(answers):
        assert answer.code == 0, answer.sentence
        found = answer.arrays[3]
        parts = [found[int(gaps[rank][r]) :][: int(counts[r, rank])] for r in range(4)]
        np.testing.assert_array_equal(np.concatenate(parts), expected[rank])

    places = np.array([0, 4, 8, 20], np.uint64)
    numbers = np.array([4, 0, 3, 1], np.uint64)
    given = [np.full(int(n), rank, np.int32) for rank, n in enumerate(numbers)]
    answers = four.call(
        "HcclAllGatherV", given, list(map(int, numbers)), np.full(21, -1, np.int32), numbers, places, INT32, COMM, 0
    )
    for answer in answers:
        assert answer.code == 0, answer.sentence
        assert answer.arrays[1].tolist() == [0] * 4 + [-1] * 4 + [2] * 3 + [-1] * 9 + [3]


@pytest.mark.parametrize("count", [0, 3, LONG])
def test_what_one_rank_sends_another_receives(count, two):
    given = np.random.default_rng(count).normal(size=count).astype(np.float32)
    for _ in range(2):
        two.start(0, "HcclSend", given, count, FLOAT32, 1, COMM, 0)
        two.start(1, "HcclRecv", empty(given, count), count, FLOAT32, 0, COMM, 0)
        results([two.answer(0)])
        np.testing.assert_array_equal(results([two.answer(1)])[0], given)


def test_a_batch_sends_and_receives_side_by_side(four):
    given = values("float32", 4, 100_000)  # more than is under way at once: in turn, all would wait for all

    def transfers(rank):
        after, before = (rank + 1) % 4, (rank - 1) % 4
        room = [empty(given[rank], 100_000), empty(given[rank], 3)]
        sends = [(0, given[rank], FLOAT32, after), (0, given[rank][:3].copy(), FLOAT32, after)]
        return [*sends, (1, room[0], FLOAT32, before), (1, room[1], FLOAT32, before)]

    for rank, answer in enumerate(four.batch([transfers(rank) for rank in range(4)])):
        assert answer.code == 0, answer.sentence
        np.testing.assert_array_equal(answer.arrays[2], given[rank - 1])
        np.testing.assert_array_equal(answer.arrays[3], given[rank - 1][:3])
    assert four.call("HcclBatchSendRecv", None, 0, COMM, 0)[0].code == 2


def test_a_communicator_knows_itself(four):
    for rank, answer in enumerate(four.call("HcclGetRankId", COMM, np.zeros(1, np.uint32))):
        assert answer.arrays[0] == rank
    assert all(answer.arrays[0] == 4 for answer in four.call("HcclGetRankSize", COMM, np.zeros(1, np.uint32)))
    names = {
        bytes(answer.arrays[0]).rstrip(b"\0") for answer in four.call("HcclGetCommName", COMM, np.zeros(128, np.uint8))
    }
    assert len(names) == 1 and names.pop().startswith(b"standin-")
    assert not any(name.startswith("standin_hccl_standin-") for name in os.listdir("/dev/shm"))  # noqa: PTH208


@pytest.mark.parametrize(
    "name, dtype, code, said",
    [
        ("HcclAllReduce", "float64", 5, "HcclAllReduce: float64 cannot be reduced on this product"),
        ("HcclAllReduce", "uint8", 5, "HcclAllReduce: uint8 cannot be reduced on this product"),
        ("HcclReduceScatter", "uint32", 5, "HcclReduceScatter: uint32 cannot be reduced on this product"),
    ],
)
def test_a_dtype_that_the_page_does_not_list_is_refused(name, dtype, code, said, two):
    x = np.zeros(4, dtype)
    answers = two.call(name, x, x.copy(), 2, TYPES.index(dtype), SUM, COMM, 0)
    assert {(answer.code, answer.sentence) for answer in answers} == {(code, said)}


def test_an_atlas_800_has_no_bfloat16(start):
    ranks = start(2, STANDIN_PRODUCT="Ascend910A")
    x = np.zeros(4, np.uint16)
    for name in ("HcclAllReduce", "HcclReduceScatter"):
        assert (
            "bfloat16 cannot be reduced" in ranks.call(name, x, x, 2, TYPES.index("bfloat16"), SUM, COMM, 0)[0].sentence
        )
    assert (
        "bfloat16 (11) cannot be sent"
        in ranks.call("HcclBroadcast", x, 2, TYPES.index("bfloat16"), 0, COMM, 0)[0].sentence
    )
    assert ranks.call("HcclAllReduce", x, x, 2, TYPES.index("float16"), SUM, COMM, 0)[0].code == 0


@pytest.mark.parametrize(
    "name, arguments, said",
    [
        ("HcclAllReduce", [None, np.zeros(4), 4, FLOAT32, SUM, COMM, 0], "HcclAllReduce: the source is null"),
        ("HcclAllReduce", [np.zeros(4), np.zeros(4), 4, FLOAT32, 7, COMM, 0], "HcclAllReduce: there is no reduction 7"),
        (
            "HcclAllReduce",
            [np.zeros(4), np.zeros(4), 4, FLOAT32, SUM, None, 0],
            "HcclAllReduce: the communicator is null",
        ),
        ("HcclBroadcast", [np.zeros(4), 4, FLOAT32, 2, COMM, 0], "HcclBroadcast: root is 2, but there are 2 ranks"),
        ("HcclSend", [np.zeros(4), 4, FLOAT32, 5, COMM, 0], "HcclSend: the destination is 5, but there are 2 ranks"),
        (
            "HcclAlltoAll",
            [np.zeros(4), 2, FLOAT32, np.zeros(4), 1, FLOAT32, COMM, 0],
            "HcclAlltoAll: 2 float32 are to be sent to each rank, but 1 float32 received",
        ),
        ("HcclSetConfig", [3, 1], "HcclSetConfig: there is no setting 3 with value 1"),
    ],
)
def test_bad_arguments_are_refused(name, arguments, said, two):
    assert [answer.sentence for answer in two.call(name, *arguments)] == [said] * 2


def test_an_address_must_suit_the_dtype(two):
    for address, dtype in ((6, "float32"), (4, "int64"), (1, "float16")):
        answers = two.call("HcclBroadcast", address, 2, TYPES.index(dtype), 0, COMM, 0)
        assert answers[0].sentence == f"HcclBroadcast: the buffer is not at an address that {dtype} may have"


@pytest.mark.parametrize(
    "calls, said",
    [
        (
            [("HcclAllReduce", 6, FLOAT32, SUM), ("HcclAllReduce", 4, FLOAT32, SUM)],
            "HcclAllReduce: the ranks differ: rank 0 calls HcclAllReduce with 6 float32, sum, but rank 1 calls "
            "HcclAllReduce with 4 float32, sum",
        ),
        (
            [("HcclAllReduce", 4, FLOAT32, SUM), ("HcclAllReduce", 4, INT32, SUM)],
            "HcclAllReduce: the ranks differ: rank 0 calls HcclAllReduce with 4 float32, sum, but rank 1 calls "
            "HcclAllReduce with 4 int32, sum",
        ),
        (
            [("HcclAllReduce", 4, FLOAT32, SUM), ("HcclAllReduce", 4, FLOAT32, 2)],
            "HcclAllReduce: the ranks differ: rank 0 calls HcclAllReduce with 4 float32, sum, but rank 1 calls "
            "HcclAllReduce with 4 float32, max",
        ),
        (
            [("HcclReduceScatter", 2, FLOAT32, SUM), ("HcclAllReduce", 2, FLOAT32, SUM)],
            "HcclReduceScatter: the ranks differ: rank 0 calls HcclReduceScatter with 2 float32, sum, but rank 1 calls "
            "HcclAllReduce with 2 float32, sum",
        ),
    ],
)
def test_ranks_that_differ_fail_on_all_of_them_at_once_and_say_how(calls, said, start):
    ranks = start(2)
    begin = time.time()
    for rank, (name, *arguments) in enumerate(calls):
        ranks.start(rank, name, np.zeros(6, np.float32), np.zeros(6, np.float32), *arguments, COMM, 0)
    answers = [ranks.answer(0), ranks.answer(1)]
    assert [answer.sentence for answer in answers] == [said] * 2
    assert time.time() - begin < 5
    assert ranks.call("HcclGetCommAsyncError", COMM, np.zeros(1, np.int32))[1].arrays[0] == 1
    assert ranks.call("HcclBarrier", COMM, 0)[0].code != 0  # and there is no going on


def test_parts_that_do_not_fit_are_named(start):
    ranks = start(2)
    x, offsets = np.zeros(8, np.float32), np.array([0, 4], np.uint64)
    sends = [np.array([2, 3], np.uint64), np.array([1, 1], np.uint64)]
    receives = [np.array([2, 1], np.uint64), np.array([2, 1], np.uint64)]
    answers = ranks.call(
        "HcclAlltoAllV", x, sends, offsets, FLOAT32, np.zeros(8, np.float32), receives, offsets, FLOAT32, COMM, 0
    )
    said = "HcclAlltoAllV: the ranks differ: rank 0 sends 3 float32 to rank 1, which expects 2"
    assert [answer.sentence for answer in answers] == [said] * 2


def test_a_receiver_of_another_shape_fails_on_both_sides(start):
    ranks = start(2)
    ranks.start(0, "HcclSend", np.zeros(6, np.float32), 6, FLOAT32, 1, COMM, 0)
    ranks.start(1, "HcclRecv", np.zeros(6, np.float32), 4, FLOAT32, 0, COMM, 0)
    said = "the ranks differ: rank 0 sends 6 float32, but rank 1 expects 4 float32"
    assert said in ranks.answer(0).sentence and said in ranks.answer(1).sentence


@pytest.mark.parametrize("name", ["HcclAllReduce", "HcclRecv"])
def test_a_dead_rank_is_noticed_within_seconds(name, start):
    ranks = start(3)
    x = np.zeros(4, np.float32)
    arguments = (x, 4, FLOAT32, 2, COMM, 0) if name == "HcclRecv" else (x, x, 4, FLOAT32, SUM, COMM, 0)
    for rank in (0, 1):
        ranks.start(rank, name, *arguments)
    time.sleep(0.2)
    os.kill(ranks.processes[2].pid, signal.SIGKILL)
    begin = time.time()
    for rank in (0, 1):
        answer = ranks.answer(rank)
        assert answer.code == 21 and f"{name}: rank 2 (process {ranks.processes[2].pid}) has died" in answer.sentence
    assert time.time() - begin < 3


def test_a_rank_that_has_left_is_noticed(start):
    ranks = start(2)
    assert ranks.call("HcclCommDestroy", COMM, ranks=[1])[0].code == 0
    answer = ranks.call("HcclBarrier", COMM, 0, ranks=[0])[0]
    assert answer.code == 21 and "HcclBarrier: rank 1 has left the communicator" in answer.sentence


def test_waiting_ends_with_the_limit(start):
    ranks = start(2, STANDIN_HCCL_TIMEOUT="0.5")
    x = np.zeros(4, np.float32)
    answer = ranks.call("HcclSend", x, 4, FLOAT32, 1, COMM, 0, ranks=[0])[0]
    assert answer.code == 9
    assert answer.sentence == "HcclSend: rank 0 has waited for 0.5 seconds for rank 1, which has called nothing"


def test_a_root_info_is_needed_to_join(start):
    ranks = start(2, joins=False, STANDIN_HCCL_TIMEOUT="0.5")
    other = np.zeros(4108, np.uint8)
    answers = ranks.join("HcclCommInitRootInfo", [(2, other, 0), (2, other, 1)])
    assert {answer.sentence for answer in answers} == {
        "HcclCommInitRootInfo: the root info is not one of HcclGetRootInfo"
    }
    root = ranks.call("HcclGetRootInfo", other, ranks=[0])[0].arrays[0]
    answers = ranks.join("HcclCommInitRootInfo", [(2, root, 0), (2, root, 2)])
    assert answers[0].sentence.endswith("for rank 1, which has not joined")
    assert answers[1].sentence == "HcclCommInitRootInfo: rank 2 is not below the number of ranks, 2"
    answers = ranks.join("HcclCommInitRootInfoConfig", [(2, root, 0, np.zeros(4096, np.uint8)), (2, root, 1, None)])
    assert "was not set up by HcclCommConfigInit" in answers[0].sentence and "is null" in answers[1].sentence


def table(path, devices=2, **changed):
    listed = [{"device_id": str(k), "device_ip": f"192.168.1.{k}", "rank_id": str(k)} for k in range(devices)]
    whole = {"status": "completed", "version": "1.0", "server_count": "1"}
    path.write_text(json.dumps({**whole, "server_list": [{"server_id": "127.0.0.1", "device": listed}], **changed}))
    return str(path)


def test_ranks_meet_by_a_rank_table_again_and_again(start, tmp_path):
    path = table(tmp_path / "table.json")
    for killed in (True, False):  # what a killed job has left is in nobody's way
        ranks = start(2, joins=False)
        if killed:
            ranks.pipes[0].send(("join", "HcclCommInitClusterInfo", (path, 0)))
            time.sleep(0.5)
            os.kill(ranks.processes[0].pid, signal.SIGKILL)
            ranks.processes[0].join()
            continue
        for answer in ranks.join("HcclCommInitClusterInfoConfig", [(path, rank, config()) for rank in range(2)]):
            assert answer.code == 0, answer.sentence
        x = np.ones(3, np.float32)
        assert results(ranks.call("HcclAllReduce", x, x, 3, FLOAT32, SUM, COMM, 0))[1].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"status": "initializing"}, 'status is not "completed"'),
        ({"version": "1.2"}, 'version is not "1.0"'),
        ({"server_count": "2"}, "server_count is not that of server_list"),
        ({"devices": 1}, "rank 1 is not below the number of ranks, 1"),
    ],
)
def test_a_bad_rank_table_is_refused(changed, said, start, tmp_path):
    ranks = start(1, joins=False)
    path = table(tmp_path / "table.json", **changed)
    assert said in ranks.join("HcclCommInitClusterInfo", [(path, 1)])[0].sentence
    assert "cannot be read" in ranks.join("HcclCommInitClusterInfo", [("nowhere.json", 1)])[0].sentence


def test_a_part_of_the_ranks_can_be_a_group(start):
    ranks = start(3)
    members = np.array([2, 0], np.uint32)
    given = [
        (PARENT, 2, members, 7, 1, config()),
        (PARENT, 0, None, 7, 0xFFFFFFFF, None),
        (PARENT, 2, members, 7, 0, config()),
    ]
    assert [answer.code for answer in ranks.join("HcclCreateSubCommConfig", given)] == [0, 0, 0]
    x = [np.full(2, rank, np.float32) for rank in (0, 2)]
    answers = ranks.call("HcclAllGather", x, np.zeros(4, np.float32), 2, FLOAT32, COMM, 0, ranks=[0, 2])
    assert results(answers)[0].tolist() == results(answers)[1].tolist() == [2, 2, 0, 0]
    wrong = ranks.join("HcclCreateSubCommConfig", [(PARENT, 2, np.array([0, 9], np.uint32), 8, 1, config())] * 3)
    assert wrong[0].sentence == "HcclCreateSubCommConfig: a member is 9, but there are 2 ranks"


def test_a_plan_checks_arguments_and_waits_for_nobody(start):
    ranks = start(2, joins=False, STANDIN_MODE="plan")
    root = ranks.call("HcclGetRootInfo", np.zeros(4108, np.int8), ranks=[0])[0].arrays[0]
    ranks.pipes[0].send(("join", "HcclCommInitRootInfo", (2, root, 0)))
    assert ranks.answer(0).code == 0
    x = np.ones(4, np.float32)
    assert (
        ranks.call("HcclAllReduce", x, x.copy(), 4, FLOAT32, SUM, COMM, 0, ranks=[0])[0].arrays[1].tolist() == [1] * 4
    )
    assert ranks.call("HcclRecv", x, 4, FLOAT32, 1, COMM, 0, ranks=[0])[0].code == 0
    assert "cannot be reduced" in ranks.call("HcclAllReduce", x, x, 2, 10, SUM, COMM, 0, ranks=[0])[0].sentence


def test_what_is_not_implemented_says_so(start, capfd):
    ranks = start(1)
    assert ranks.call("HcclCommResume", COMM)[0].code != 0
    ranks.close()
    assert "[stand-in] HcclCommResume is not implemented" in capfd.readouterr().err


def test_every_call_is_traced(libraries, tmp_path):
    ranks = Ranks(2, libraries, {"STANDIN_TRACE": str(tmp_path / "trace")})
    x = np.ones(4, np.float32)
    ranks.call("HcclAllReduce", x, x, 4, FLOAT32, SUM, COMM, 0)
    ranks.close()
    expected = {
        "op": "HcclAllReduce",
        "stream": 0,
        "count": 4,
        "dtype": "float32",
        "bytes": 32,
        "ranks": 2,
        "reduction": "sum",
    }
    assert [{**line, "rank": None} for line in standin.read_trace(tmp_path / "trace")] == [
        {**expected, "rank": None}
    ] * 2

"""Launching with rank tables: what each rank is given, by a stand-in for Python that writes it down."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.golden_values import ROOT

from latte.commands import rank_table
from latte.errors import UserError

CONFIG = "configs/training/sky_video.yaml"
LAUNCHERS = ("run_distributed.sh", "run_mpirun.sh", pytest.param("run_msrun.sh", marks=pytest.mark.slow))
NAMES = ("RANK_TABLE_FILE", "RANK_ID", "RANK_SIZE", "DEVICE_ID", "MS_ASCEND_CHECK_OVERFLOW_MODE")
NAMES += ("HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT", "BOUND")
# Runs everything but train.py (or PROGRAM) for real; in place of that it writes down its environment and does what
# RANK_<id> says.
STAND_IN = f"""#!{sys.executable}
import json, os, signal, sys, time
if sys.argv[1] != os.environ.get("PROGRAM", "train.py"):
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
if os.environ.get("MS_ROLE") == "MS_SCHED":
    sys.exit(0)
rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["RANK_ID"]
told = []
def stop(number, frame):
    told.append(number)
    print("told to stop", flush=True)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop)
given = {{name: os.environ.get(name) for name in {NAMES}}} | {{"cores": sorted(os.sched_getaffinity(0))}}
record = os.path.join(os.environ["RECORD"], rank)
with open(record + ".part", "w") as file:
    json.dump([given, sys.argv[1:]], file)
os.rename(record + ".part", record)
print("rank", rank, "says hello", flush=True)
todo = os.environ.get("RANK_" + rank, "end")
if todo in ("die", "kill"):
    print("out of memory", flush=True)
    os.kill(os.getpid(), signal.SIGKILL) if todo == "kill" else sys.exit(7)
end = time.time() + (30 if todo == "wait" else 0)
while not told and time.time() < end:
    time.sleep(0.05)
if told:
    time.sleep(0.5)  # saving
    print("saved", flush=True)
"""


# On a machine with 16 cores for this process, which are not the first 16.
TASKSET = """#!/bin/bash
if [[ $1 == -cp ]]; then echo "pid $2's current affinity list: 0-3,8-18,20"; else BOUND=$2 exec "${@:3}"; fi
"""


@pytest.fixture
def launch(tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    (tmp_path / "record").mkdir()

    def start(*arguments, script="run_distributed.sh", root=ROOT, **environment):
        environment = {"PYTHON": str(stand_in), "RECORD": str(tmp_path / "record"), "GRACE": "1", **environment}
        environment = {"LOG_DIR": str(tmp_path / "logs")} | environment
        path = environment.get("PATH", os.environ["PATH"])
        environment |= {"PATH": f"{Path(sys.executable).parent}:{path}"}  # mpirun is beside Python
        command = ["bash", root / "scripts" / script, *map(str, arguments)]
        outside = {name: value for name, value in os.environ.items() if not name.startswith("HCCL_")}  # MindSpore's
        return subprocess.Popen(
            command,
            env=outside | environment,
            stdout=-1,
            stderr=-1,
            text=True,
            cwd=tmp_path,
            start_new_session=True,  # a process group, as at a terminal
        )

    return start


@pytest.fixture
def table(tmp_path):
    def write(servers):
        ranks = iter(range(100))
        listed = []
        for server, devices in servers.items():
            entries = [{"device_id": str(d), "device_ip": f"192.1.0.{d}", "rank_id": str(next(ranks))} for d in devices]
            listed.append({"server_id": server, "device": entries})
        path = tmp_path / "table.json"
        path.write_text(json.dumps({"version": "1.0", "server_count": str(len(listed)), "server_list": listed}))
        return path

    return write


def recorded(tmp_path):
    return {int(path.name): json.loads(path.read_text()) for path in (tmp_path / "record").iterdir()}


@pytest.fixture
def sixteen_cores(tmp_path):
    """Return a PATH with a taskset that says what it was given, on a machine that has these cores for the script."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "taskset").write_text(TASKSET)
    (tmp_path / "bin" / "taskset").chmod(0o755)
    return f"{tmp_path / 'bin'}:{os.environ['PATH']}"


CORES = ["0", "1", "2", "3", *map(str, range(8, 19)), "20"]


@pytest.mark.parametrize(
    "servers, start, server, expected",
    [
        ({"10.0.0.1": range(8)}, "00", "", {0: 0, 1: 1, 2: 2, 3: 3}),
        ({"10.0.0.1": range(8)}, 4, "", {0: 4, 1: 5, 2: 6, 3: 7}),
        ({"10.0.0.1": range(8), "10.0.0.2": range(8)}, 0, "10.0.0.1", {0: 0, 1: 1, 2: 2, 3: 3}),
        ({"10.0.0.1": range(8), "10.0.0.2": range(8)}, 0, "10.0.0.2", {4: 0, 5: 1, 6: 2, 7: 3}),
        ({"10.0.0.1": range(8), "10.0.0.2": range(8)}, 4, "10.0.0.2", {4: 4, 5: 5, 6: 6, 7: 7}),
        ({"10.0.0.1": range(4, 8), "10.0.0.2": range(4, 8)}, 4, "10.0.0.1", {0: 4, 1: 5, 2: 6, 3: 7}),
    ],
)
def test_what_each_rank_is_given(servers, start, server, expected, launch, table, sixteen_cores, tmp_path):
    path, places = table(servers), list(next(iter(servers.values())))
    process = launch(CONFIG, path, start, 4, "--max_steps", "3", SERVER_ID=server, BIND_CORES="1", PATH=sixteen_cores)
    _out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    found = recorded(tmp_path)
    for rank, (given, arguments) in sorted(found.items()):  # shown by pytest -s
        print(f"| {len(servers)} | {start} | {rank} |", " | ".join(str(given[name]) for name in NAMES), "|", *arguments)
    assert {rank: int(given["DEVICE_ID"]) for rank, (given, _) in found.items()} == expected
    for rank, (given, arguments) in found.items():
        assert int(given["RANK_ID"]) == rank and int(given["RANK_SIZE"]) == 4 * len(servers)
        # HCCL waits for all that are in the table, so it has nobody else.
        whole = places == [4, 5, 6, 7]
        assert given["RANK_TABLE_FILE"] == str(path if whole else tmp_path / "logs" / "rank_table.json")
        used = json.loads(Path(given["RANK_TABLE_FILE"]).read_text())["server_list"]
        first = int(start)
        assert [int(d["device_id"]) for s in used for d in s["device"]] == [*range(first, first + 4)] * len(servers)
        assert [int(d["rank_id"]) for s in used for d in s["device"]] == [*range(4 * len(servers))]
        assert given["MS_ASCEND_CHECK_OVERFLOW_MODE"] == "INFNAN_MODE"
        assert (given["HCCL_CONNECT_TIMEOUT"], given["HCCL_EXEC_TIMEOUT"]) == ("1200", "7200")
        share, place = len(CORES) // len(places), places.index(expected[rank])
        assert given["BOUND"].split(",") == CORES[place * share : (place + 1) * share]
        assert arguments[:2] == ["train.py", "-c"] and arguments[2].endswith(CONFIG)
        assert arguments[3:] == ["--use_parallel", "True", "--max_steps", "3"]
        assert f"rank {rank} says hello" in (tmp_path / "logs" / f"rank_{rank}.log").read_text()


@pytest.mark.parametrize("todo, code", [("die", 7), ("kill", 137)])
@pytest.mark.parametrize("servers, start, first", [(1, 0, 0), (1, 4, 0), (2, 0, 3), (2, 4, 3)])
def test_when_one_rank_dies_all_of_its_machine_are_stopped(servers, start, first, todo, code, launch, table, tmp_path):
    path = table({f"10.0.0.{k + 1}": range(8) for k in range(servers)})
    todos = {f"RANK_{first}": "wait", f"RANK_{first + 1}": todo, f"RANK_{first + 2}": "wait"}
    begin = time.time()
    process = launch(CONFIG, path, start, 3, SERVER_ID=f"10.0.0.{servers}", **todos)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code and time.time() - begin < 20
    assert f"rank {first + 1} ended with code {code}" in error and "out of memory" in error
    assert "told to stop" in (tmp_path / "logs" / f"rank_{first}.log").read_text()


@pytest.mark.parametrize("script", LAUNCHERS)
def test_time_outs_of_hccl_reach_every_rank(script, launch, table, tmp_path):
    arguments = (table({"10.0.0.1": range(2)}), 0, 2) if script == "run_distributed.sh" else (2,)
    process = launch(CONFIG, *arguments, script=script, HCCL_EXEC_TIMEOUT="99")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    found = [(given["HCCL_CONNECT_TIMEOUT"], given["HCCL_EXEC_TIMEOUT"]) for given, _ in recorded(tmp_path).values()]
    assert found == [("1200", "99")] * 2


@pytest.mark.parametrize("script", LAUNCHERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_each_rank_once_and_lets_it_save(script, number, launch, table, tmp_path):
    """SIGTERM goes to the script, Ctrl-C to all processes of the terminal; at a second one train.py would not save."""
    arguments = (table({"10.0.0.1": range(2)}), 0, 2) if script == "run_distributed.sh" else (2,)
    process = launch(CONFIG, *arguments, script=script, RANK_0="wait", RANK_1="wait")
    wait_for_ranks(tmp_path, 2)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, error = process.communicate(timeout=20)
    assert process.returncode == 0, out + error
    for rank in (0, 1):
        log = (tmp_path / "logs" / f"rank_{rank}.log").read_text()
        assert log.count("told to stop") == 1 and "saved" in log


@pytest.mark.parametrize("script", LAUNCHERS)
@pytest.mark.parametrize("program", ["sample.py", "tools/embedding_cache.py"])
def test_other_programs_are_launched_and_stopped_in_the_same_way(script, program, launch, table, tmp_path):
    arguments = (table({"10.0.0.1": range(2)}), 0, 2) if script == "run_distributed.sh" else (2,)
    process = launch(CONFIG, *arguments, "--seed", "3", script=script, PROGRAM=program, RANK_0="wait", RANK_1="wait")
    wait_for_ranks(tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=20)
    assert process.returncode == 0, out + error
    expected = [program, "-c", CONFIG, "--use_parallel", "True", "--seed", "3"]
    assert [given for _, given in recorded(tmp_path).values()] == [expected] * 2
    for rank in (0, 1):
        assert (tmp_path / "logs" / f"rank_{rank}.log").read_text().count("told to stop") == 1


@pytest.mark.parametrize("script", LAUNCHERS[1:])
def test_when_a_rank_of_a_launcher_dies_its_log_is_shown(script, launch, tmp_path):
    process = launch(CONFIG, 2, script=script, RANK_0="wait", RANK_1="die")
    _, error = process.communicate(timeout=30)
    assert process.returncode == (7 if script == "run_mpirun.sh" else 1)
    assert "the job ended with code" in error and "rank_1.log" in error and "out of memory" in error


@pytest.mark.parametrize(
    "arguments, said",
    [((CONFIG,), "usage:"), ((CONFIG, "two"), "N is 'two'"), (("missing.yaml", 2), "no config file missing.yaml")],
)
@pytest.mark.parametrize("script", ["run_mpirun.sh", "run_msrun.sh"])
def test_bad_launches_with_a_launcher_are_one_sentence(script, arguments, said, launch):
    process = launch(*arguments, script=script)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 2 and error.startswith("error: ") and len(error.splitlines()) == 1 and said in error


def test_cores_are_those_that_the_script_may_use(launch, table, tmp_path):
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        process = launch(CONFIG, table({"10.0.0.1": [0]}), 0, 1, BIND_CORES="1")
        _, error = process.communicate(timeout=20)
        refused = launch(CONFIG, table({"10.0.0.1": range(2)}), 0, 1, BIND_CORES="1")
        _, said = refused.communicate(timeout=20)
    finally:
        os.sched_setaffinity(0, allowed)
    assert process.returncode == 0, error
    assert [given["cores"] for given, _ in recorded(tmp_path).values()] == [[max(allowed)]]
    assert refused.returncode == 2 and "needs one core per device, but there are 1" in said


@pytest.mark.parametrize("script", LAUNCHERS[1:])
def test_launchers_give_each_rank_cores_of_its_own(script, launch, sixteen_cores, tmp_path):
    process = launch(CONFIG, 2, script=script, PATH=sixteen_cores)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    bound = [given["BOUND"].split(",") for _, (given, _) in sorted(recorded(tmp_path).items())]
    assert bound == [CORES[:8], CORES[8:]]


@pytest.mark.parametrize(
    "bind, count, said", [("0", 2, ""), ("", 17, "no rank is bound to cores"), ("2", 2, "must be 0 or 1")]
)
def test_binding_can_be_switched_off_and_is_left_out_where_there_are_too_few_cores(
    bind, count, said, launch, table, sixteen_cores, tmp_path
):
    path = table({"10.0.0.1": range(count)})
    process = launch(CONFIG, path, 0, 2, BIND_CORES=bind, PATH=sixteen_cores)
    out, error = process.communicate(timeout=60)
    assert said in out + error and process.returncode == (2 if bind == "2" else 0)
    assert {given["BOUND"] for given, _ in recorded(tmp_path).values()} <= {None}


# Two nodes of four cores with two threads each, numbered as x86 does.
NODES = {0: "0-3,8-11", 1: "4-7,12-15"}
TOPOLOGY = """#!/bin/bash
echo "           NPU0       NPU1       CPU Affinity"
echo "NPU0       X          HCCS       4-5"
echo "NPU1       HCCS       X          0-1"
"""


@pytest.fixture
def cores(tmp_path, monkeypatch):
    """Return the module that shares cores, on a machine with these nodes."""
    spec = importlib.util.spec_from_file_location("cores", ROOT / "scripts" / "cores.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for node, listed in NODES.items():
        (tmp_path / "node" / f"node{node}").mkdir(parents=True)
        (tmp_path / "node" / f"node{node}" / "cpulist").write_text(f"{listed}\n")
    for core in range(16):
        (tmp_path / "cpu" / f"cpu{core}" / "topology").mkdir(parents=True)
        siblings = tmp_path / "cpu" / f"cpu{core}" / "topology" / "thread_siblings_list"
        siblings.write_text(f"{core % 8},{core % 8 + 8}\n")
    monkeypatch.setattr(module, "SYSTEM", tmp_path)
    return module


def test_shares_do_not_cross_numa_nodes_or_cores(cores):
    assert cores.share(range(16), [0, 1]) == [[0, 8, 1, 9, 2, 10, 3, 11], [4, 12, 5, 13, 6, 14, 7, 15]]
    assert cores.share(range(16), range(4))[2] == [4, 12, 5, 13]
    assert [len(found) for found in cores.share(range(5), range(4))] == [1, 1, 1, 2]
    assert cores.share([0, 1], [0, 1]) == [[0], [1]]


def test_a_device_gets_cores_of_the_node_that_it_is_near_to(cores, tmp_path, monkeypatch):
    (tmp_path / "npu-smi").write_text(TOPOLOGY)
    (tmp_path / "npu-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert cores.share(range(16), [0, 1]) == [[4, 12, 5, 13, 6, 14, 7, 15], [0, 8, 1, 9, 2, 10, 3, 11]]
    assert cores.share(range(4), [0, 1]) == [[0, 1], [2, 3]]  # this process may not use the other node
    assert cores.share(range(16), [0, 2])[0] == [0, 8, 1, 9, 2, 10, 3, 11]  # not told of device 2


def test_the_command_of_the_tutorial(launch, table, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "tools").symlink_to(ROOT / "tools")
    (root / "train.py").touch()
    config = root / "configs" / "training" / "sky_numpy_video.yaml"
    config.parent.mkdir(parents=True)
    config.touch()
    path = table({"10.0.0.1": range(8)})
    process = launch(path, 4, 2, "--epochs", "1", script="run_distributed_sky_numpy_video.sh", root=root)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 0, error
    found = recorded(tmp_path)
    assert sorted(found) == [0, 1]
    assert found[0][1] == ["train.py", "-c", found[0][1][2], "--use_parallel", "True", "--epochs", "1"]
    assert found[0][1][2].endswith("configs/training/sky_numpy_video.yaml")


def wait_for_ranks(tmp_path, count):
    end = time.time() + 30
    while len([path for path in (tmp_path / "record").iterdir() if path.name.isdecimal()]) < count:
        assert time.time() < end
        time.sleep(0.1)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((CONFIG, "missing.json", 0, 4), "there is no rank table missing.json"),
        ((CONFIG, "broken.json", 0, 4), "is not a rank table"),
        ((CONFIG, "text.json", 4, 4), "is not a rank table"),
        ((CONFIG, "twice.json", 0, 4), "the ranks are not 0 to 7, each once"),
        ((CONFIG, "folder.json", 0, 4), "there is no rank table folder.json"),
        ((CONFIG, "table.json", 6, 4), "device 8 of this machine is not in"),
        ((CONFIG, "table.json", "x", 4), "START is 'x', but must be"),
        ((CONFIG, "table.json", 0, 0), "N is '0', but must be"),
        (("missing.yaml", "table.json", 0, 4), "there is no config file missing.yaml"),
        ((CONFIG, "table.json", "1e9", 4), "START is '1e9', but must be"),
        ((CONFIG, "table.json", "9" * 30, 4), "but must be the number of a device"),
        ((CONFIG, "table.json", 0, "9" * 30), "but must be a number of devices"),
        ((CONFIG, "table.json", "08", "01"), "device 8 of this machine is not in"),
        ((CONFIG, "again.json", 0, 4), "device 0 of 10.0.0.1 stands in it twice"),
        ((CONFIG,), "usage:"),
    ],
)
def test_bad_launches_are_one_sentence(arguments, said, launch, table, tmp_path):
    text = table({"10.0.0.1": range(8)}).read_text()
    (tmp_path / "twice.json").write_text(text.replace('"rank_id": "7"', '"rank_id": "6"'))
    (tmp_path / "again.json").write_text(text.replace('"device_id": "1"', '"device_id": "00"'))
    (tmp_path / "text.json").write_text("rank table")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "broken.json").write_text('{"server_list": [{}]}')
    process = launch(*arguments)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2 and error.startswith("error: ") and len(error.splitlines()) == 1
    assert said in error and not recorded(tmp_path)


def make_table(*arguments, **environment):
    command = [sys.executable, ROOT / "tools" / "make_rank_table.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


@pytest.mark.skipif(Path("/etc/hccn.conf").exists(), reason="this machine has real Ascend devices")
def test_addresses_are_asked_of_the_driver(tmp_path):
    tool = tmp_path / "hccn_tool"
    tool.write_text('#!/bin/bash\n[[ $2 == 3 ]] || echo -e "ipaddr:192.1.0.$2\\nnetmask:255.255.255.0"\n')
    tool.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = make_table("--devices", "0-2", "--target", tmp_path / "t.json", PATH=path)
    assert done.returncode == 0, done.stderr
    (server,) = json.loads((tmp_path / "t.json").read_text())["server_list"]
    assert [device["device_ip"] for device in server["device"]] == ["192.1.0.0", "192.1.0.1", "192.1.0.2"]
    done = make_table("--devices", "0-3", "--target", tmp_path / "none.json", PATH=path)
    assert done.returncode == 2 and "device 3 has no address" in done.stderr and not (tmp_path / "none.json").exists()


def test_tables_are_made_and_merged(tmp_path):
    ips = "192.1.1.6,192.1.1.7"
    for k in (1, 2):
        done = make_table(
            "--devices", "6-7", "--device_ips", ips, "--server_id", f"10.0.0.{k}", "--target", tmp_path / f"{k}.json"
        )
        assert done.returncode == 0, done.stderr
    merged = tmp_path / "all.json"
    assert make_table("--merge", tmp_path / "1.json", tmp_path / "2.json", "--target", merged).returncode == 0
    found = json.loads(merged.read_text())
    assert found["server_count"] == "2" and found["status"] == "completed"
    ranks = [(d["rank_id"], d["device_id"], d["device_ip"]) for s in found["server_list"] for d in s["device"]]
    assert ranks == [("0", "6", ips[:9]), ("1", "7", ips[10:]), ("2", "6", ips[:9]), ("3", "7", ips[10:])]
    shown = make_table("--show", merged, "--server_id", "10.0.0.2")
    assert shown.stdout.splitlines() == ["6 2 4", "7 3 4"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--devices", "7-5"), "must be like 0-7 or 0,2,3"),
        (("--devices", "0,1", "--device_ips", "1.2.3.4"), "gives 1 addresses for 2 devices"),
        (("--devices", "0", "--device_ips", "here"), "'here' is not an IP address"),
        (("--devices", "0-99999999999"), "must be like 0-7 or 0,2,3"),
        (("--merge", "none.json"), "there is no rank table none.json"),
    ],
)
def test_bad_tables_are_one_sentence(arguments, said, tmp_path):
    done = make_table(*arguments, "--target", tmp_path / "t.json")
    assert done.returncode == 2 and said in done.stderr and not (tmp_path / "t.json").exists()


DEVICE = '{"device_id": "0", "rank_id": "0"}'


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"server_list": [{"server_id": [1], "device": [DEVICE]}]}', "server_id is [1], but must be a text"),
        ('{"server_list": [{"server_id": 1, "device": [DEVICE]}]}', "server_id is 1, but must be a text"),
        ('{"server_list": [{"server_id": "a\\u001b[2J", "device": [DEVICE]}]}', "but must be a text"),
        ('{"server_list": [{"server_id": "a", "device": [DEVICE, DEVICE]}]}', "device 0 of a stands"),
        (
            '{"server_list": [{"server_id": "a", "device": [DEVICE]}, {"server_id": "a", "device": []}]}',
            "server a",
        ),
        ('{"server_list": [{"server_id": "a", "device": [{"device_id": 0, "rank_id": Infinity}]}]}', "rank_id is inf"),
        ('{"server_list": [{"server_id": "a", "device": [{"device_id": true, "rank_id": 0}]}]}', "device_id is True"),
        ('{"server_list": [{"server_id": "a", "device": [{"device_id": 0.5, "rank_id": 0}]}]}', "device_id is 0.5"),
        ('{"server_list": [{"server_id": "a", "device": [{"device_id": "\u0663", "rank_id": 0}]}]}', "device_id is"),
        (
            '{"server_list": [{"server_id": "a", "device": [{"device_id": "0", "rank_id": ' + "9" * 5000 + "}]}]}",
            "Error",
        ),
        ('{"server_list": ' + "[" * 100_000, "RecursionError"),
        ('{"server_list": [{"server_id": "a", "device": {"device_id": "0"}}]}', "TypeError"),
        ('{"server_list": []}', "the ranks are not 0 to -1"),
        ("[]", "TypeError"),
        ("\u00e9".encode("latin-1").decode("latin-1"), "is not a rank table"),
    ],
)
def test_tables_that_are_not_well_formed_are_refused_in_one_sentence(text, said, tmp_path):
    (tmp_path / "t.json").write_text(text.replace("DEVICE", DEVICE))
    with pytest.raises(UserError) as caught:
        rank_table.local_ranks(rank_table.read_table(str(tmp_path / "t.json")), "10.0.0.1", "t.json")
    assert said in str(caught.value) and len(str(caught.value)) < 500 and str(caught.value).isprintable()


def test_numbers_of_a_table_have_one_form(tmp_path):
    device = {"device_id": 8, "rank_id": "00"}
    (tmp_path / "t.json").write_text(json.dumps({"server_list": [{"server_id": "a", "device": [device]}]}))
    assert rank_table.local_ranks(rank_table.read_table(str(tmp_path / "t.json")), "a", "t") == [("8", "0", 1)]


@pytest.mark.parametrize("script", LAUNCHERS[:2])
@pytest.mark.parametrize(
    "variables, said",
    [
        ({"PYTHON": "/none/python"}, "there is no program /none/python"),
        ({"LOG_DIR": "/proc/x"}, "cannot be written"),
        ({"PROGRAM": "no_such.py"}, "there is no program no_such.py here; PROGRAM is"),
    ],
)
def test_surroundings_that_do_not_fit_are_one_sentence(script, variables, said, launch, table):
    arguments = (table({"10.0.0.1": range(2)}), 0, 2) if script == "run_distributed.sh" else (2,)
    process = launch(CONFIG, *arguments, script=script, **variables)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 2 and error.startswith("error: ") and len(error.splitlines()) == 1 and said in error

"""speedrun.sh: the rehearsal and the real run are the same commands, on one machine and on several."""

import importlib
import json
import os
import shlex
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from ranks import free_port

from dev import mirror
from nanochat import core_eval, dataset, forecast
from nanochat.configurator import parse
from tasks import mixtures, published, registry

ROOT = Path(__file__).parent.parent


SETTINGS = ("NODES", "NODE_RANK", "MASTER", "GPUS", "GPU", "TIER", "DEPTH", "RL", "SEEN")


def listed(tmp_path, *command, planned=True, **environment) -> list[list[str]]:
    """The commands that a script would run, as words. `planned`: scripts.forecast is stood in for by what it said."""
    if planned:
        python = tmp_path / "python"
        lines = forecast.shell_variables(forecast.forecast(forecast.Gpus.parse("8xH100"), 24))
        text = "\n".join(f"{name}={shlex.quote(value)}" for name, value in lines.items())
        python.write_text(f"#!/bin/bash\ncat <<'END'\n{text}\nEND\n")
        python.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment |= {"PATH": path} | {
        name: value for name, value in os.environ.items() if name not in (*SETTINGS, "PATH")
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def modules(commands: list[list[str]]) -> list[tuple[str, str]]:
    """(python or torchrun, module with its stage) of each."""
    found = []
    for words in commands:
        stage = words[words.index("-i") + 1] if "-i" in words else ""
        found.append((words[0], words[words.index("-m") + 1] + stage))
    return found


def flags(words: list[str]) -> list[str]:
    return [word for word in words[words.index("-m") + 2 :] if word != "--"]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return listed(tmp_path_factory.mktemp("bin"), "bash", "speedrun.sh", "--list", planned=False, RL="1", SEEN="1")


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    return listed(tmp_path_factory.mktemp("bin"), "bash", "speedrun.sh", "--rehearse", "--list")


def test_the_rehearsal_runs_every_command_of_the_real_run(real, rehearsal):
    assert modules(real) == modules(rehearsal) and len(real) == 16
    for ours, toys in zip(real, rehearsal):
        names = {word.split("=")[0] for word in flags(ours) if word.startswith("-")}
        assert names <= {word.split("=")[0] for word in flags(toys)}, (ours, toys)


def test_every_flag_is_one_that_its_script_knows(real, rehearsal):
    for words in real + rehearsal:
        module = importlib.import_module(words[words.index("-m") + 1])
        if hasattr(module, "Config") and "chat_cli" not in module.__name__:  # its question has blanks
            parse(module.Config, flags(words))
    assert "--depth=24" in real[5] and "175" in real[1]  # by scripts/forecast.py: tests/test_forecast.py


def test_the_tier_chooses_the_depth(tmp_path):
    commands = listed(tmp_path, "bash", "speedrun.sh", "--list", planned=False, TIER="300")
    (base,) = [words for words in commands if "scripts.base_train" in words]
    assert "--depth=30" in base and "--device_batch_size=8" in base
    done = subprocess.run(["bash", "speedrun.sh", "--rehearsal"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "--rehearsal is not --rehearse or --list" in done.stderr


@pytest.mark.parametrize("file", ["dev/speedrun.slurm", "dev/speedrun.sky.yaml"])
def test_several_machines_run_the_same_commands(tmp_path, rehearsal, file):
    """The scheduler's own commands are stood in for by scripts that say what they would."""
    stubs = {
        "scontrol": "echo first; seq 100000",  # more than a pipe holds
        "srun": 'for id in 0 1; do echo "node $id"; SLURM_NODEID=$id "$@"; done',
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    if file.endswith(".slurm"):
        environment = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "first,second", "SLURM_GPUS_ON_NODE": "8"}
        lines = listed(tmp_path, "bash", file, "--rehearse", "--list", **environment)
        second = lines.index(["node", "1"])
        nodes = lines[1:second], lines[second + 1 :]
    else:
        page = yaml.safe_load((ROOT / file).read_text())
        assert set(page) == {"name", "num_nodes", "workdir", "resources", "envs", "run"}
        assert page["resources"]["accelerators"] == "H100:8" and page["workdir"] == "."
        common = page["envs"] | {"FLAGS": "--rehearse --list"}
        common |= {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "first\nsecond"}
        ranks = ({"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_GPUS_PER_NODE": "8"} for rank in (0, 1))
        nodes = [listed(tmp_path, "bash", "-c", page["run"], **common, **rank) for rank in ranks]
    assert modules(nodes[0]) == modules(rehearsal)
    assert modules(nodes[1]) == [each for each in modules(rehearsal) if each[0] == "torchrun"]
    for rank, commands in enumerate(nodes):
        for words in commands:
            if words[0] == "torchrun":
                assert words[1:5] == ["--nnodes=2", f"--node_rank={rank}", "--master_addr=first", "--master_port=29500"]


def test_ranks_of_two_groups_take_devices_by_local_rank_and_data_by_rank(tmp_path):
    """Two launchers on this machine, as two machines would have them."""
    script = tmp_path / "say.py"
    script.write_text(
        "import json, sys, torch\n"
        "from nanochat.common import setup\n"
        "with setup('cpu') as dist:\n"
        "    total = dist.all_reduce(torch.tensor([float(dist.rank)]))\n"
        "    said = [dist.rank, dist.local_rank, dist.world_size, total.item()]\n"
        "    open(f'{sys.argv[1]}/{dist.rank}.json', 'w').write(json.dumps(said))\n"
    )
    meet = ["--nnodes=2", "--master_addr=127.0.0.1", f"--master_port={free_port()}", "--nproc_per_node=1"]
    launch = [sys.executable, "-m", "torch.distributed.run", *meet]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    commands = [[*launch, f"--node_rank={rank}", str(script), str(tmp_path)] for rank in (0, 1)]
    groups = [subprocess.Popen(command, env=environment) for command in commands]
    assert [group.wait(timeout=120) for group in groups] == [0, 0]
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert said == [[0, 0, 2, 1.0], [1, 0, 2, 1.0]]


def test_the_mirror_has_all_that_is_downloaded(tmp_path, base_dir, monkeypatch, capsys):
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    mirror.make(tmp_path)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        dataset.main(dataset.Config(n=3, mirror=url))
        published.main(published.Config(training=True, mirror=url))
        server.shutdown()
        thread.join()
    assert len(list(dataset.documents("climbmix", "train"))) == 3 * 1024
    assert len(mixtures.standard_mid_mixture()) > 40 and len(mixtures.standard_sft_mixture()) > 40
    tasks, left_out = registry.evaluation_tasks()
    assert not left_out and {"MMLU", "GSM8K", "HumanEval"} <= {task.name for task in tasks}
    assert all(core_eval.find_file(base_dir / "evals", task.file) for task in core_eval.CORE_TASKS)
    conversation = registry.evaluation_task("GSM8K")[0]
    assert conversation["messages"][1]["content"][1]["type"] == "python"


def test_scripts_are_bash():
    for name in ("speedrun.sh", "quickstart.sh", "test.sh", "dev/speedrun.slurm", "dev/gpu_check.sh", "dev/venv.sh"):
        assert subprocess.run(["bash", "-n", shlex.quote(name)], cwd=ROOT).returncode == 0

"""Make the saved runs in this folder with the mlxchat that is installed; see README.md.

PYTHONPATH=tests python tests/golden/runs/make.py COMMIT
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from support.saved_runs import environment, outline, read_weights

import mlxchat
from mlxchat.runtime import mx  # loads OpenBLAS, which `environment` asks

HERE = Path(__file__).parent
HOME = "/home/user/.cache/mlxchat"  # replaces the real path in the logs
NARROW = (
    "import sys; from mlxchat.model import config; config.ASPECT_RATIO = int(sys.argv.pop(1)); "
    "from mlxchat.cli.app import main; main()"
)
COMMON = "--save-every 8 --keep 1 --num-iterations 16 --eval-every 6 --sample-every 12"
TEXT = f"--dataset builtin --vocab-size 280 --max-seq-len 32 {COMMON}"
BATCH = "--total-batch-size 256 --device-batch-size 4 --eval-tokens 256"
RUNS = {  # width of a layer, folder, command
    "classic": (
        8,
        "base_checkpoints/classic",
        f"mlxchat train --arch classic --depth 2 --head-dim 8 {TEXT} {BATCH} --model-tag classic",
    ),
    "modern": (
        12,
        "base_checkpoints/modern",
        f"mlxchat train --arch modern --depth 2 --head-dim 12 --warmup-steps 4 {TEXT} {BATCH} "
        "--embedding-lr 10 --unembedding-lr 0.3 --matrix-lr 0.9 --scalar-lr 5 --weight-decay 0.1 "
        "--model-tag modern",
    ),
    "sft": (
        8,
        "chatsft_checkpoints/classic-sft",
        f"mlxchat sft --source classic --data chats.jsonl --validation-share 0.1 {COMMON} "
        "--total-batch-size 128 --device-batch-size 2",
    ),
}
SAVED, LAST = 8, 16
ASKED = {"sft": "Say red."}


def run(home: Path, width: int, command: str, stop: int | None = None) -> list[dict]:
    """The events of a run, which is killed as soon as step ``stop`` is saved."""
    arguments = [sys.executable, "-c", NARROW, str(width), *shlex.split(command)[1:], "--json"]
    fixed = {"MLXCHAT_HOME": str(home), "OPENBLAS_NUM_THREADS": "1", "MLX_ENABLE_TF32": "0"}
    events = []
    process = subprocess.Popen(
        arguments, cwd=home, env={**os.environ, **fixed}, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        events.append(json.loads(line))
        if events[-1]["event"] == "saved" and events[-1]["step"] == stop:
            process.kill()
            break
    assert process.wait() == (0 if stop is None else -9)
    return events


def say(home: Path, *words: str) -> str:
    """Run a command; returns what it prints."""
    command = [sys.executable, "-m", "mlxchat", *words]
    fixed = {"MLXCHAT_HOME": str(home), "OPENBLAS_NUM_THREADS": "1", "MLX_ENABLE_TF32": "0"}
    result = subprocess.run(
        command, cwd=home, env={**os.environ, **fixed}, check=True, capture_output=True, text=True
    )
    return result.stdout


def make(name: str, base: Path | None, commit: str) -> Path:
    """Run once undisturbed and once until killed; returns the undisturbed run's home."""
    width, folder, command = RUNS[name]
    homes = [Path(tempfile.mkdtemp()) for _ in range(2)]
    for home in homes:
        if name == "sft":
            shutil.copy(HERE / "chats.jsonl", home)
            shutil.copytree(base / "base_checkpoints", home / "base_checkpoints")
    straight, killed = homes
    events = run(straight, width, command)
    run(killed, width, command, stop=SAVED)
    if name == "sft":  # a resumed run no longer needs the model it began with
        shutil.rmtree(killed / "base_checkpoints")
    tag = Path(folder).name
    for unfinished in (killed / folder).glob(".unfinished*"):
        shutil.rmtree(unfinished)
    for lock in killed.rglob("*.lock"):
        lock.unlink()
    log, status = (killed / "logs" / tag / file for file in ("metrics.jsonl", "status.json"))
    log.write_text(log.read_text().replace(str(killed), HOME))
    told = json.loads(status.read_text())
    told["process"]["host"] = "somewhere"
    status.write_text(json.dumps(told))
    shutil.rmtree(HERE / name, ignore_errors=True)
    shutil.copytree(killed, HERE / name)

    prompt = ASKED.get(name, "The cow")
    asked = ["chat", "--model-tag", tag, "--temperature", "0", "--max-tokens", "12", "-p", prompt]
    weights = read_weights(straight / folder / f"step_{LAST:06d}" / "model.safetensors")
    facts = {
        "made_with": {"commit": commit, "mlxchat": mlxchat.__version__, **environment()}
        | {"threads": 1},  # of the runs
        "command": command,
        "folder": folder,
        "saved_step": SAVED,
        "last_step": LAST,
        "losses": {e["step"]: e["loss"] for e in events if e["event"] == "step"},
        "bits_per_byte": {
            e["step"]: e["bits_per_byte"] for e in events if e["event"] == "evaluation"
        },
        "final_weights": outline(weights),
        "chat": {"command": shlex.join(["mlxchat", *asked]), "says": say(killed, *asked)},
    }
    if name == "sft":
        evaluation = f"eval chat --model-tag {tag} --data chats.jsonl --tasks spelling"
        evaluation += " --max-problems 4 --json"
        found = json.loads(say(killed, *evaluation.split()))
        facts["evaluation"] = {"command": f"mlxchat {evaluation}", "finds": found}
    (HERE / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    return straight


if __name__ == "__main__":
    assert mx.default_device() == mx.Device(mx.cpu)
    classic = make("classic", None, sys.argv[1])
    make("modern", None, sys.argv[1])
    make("sft", classic, sys.argv[1])

"""The command `serve` from the outside: what it prints, and how it ends."""

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from support.api_runs import small_runs

BASE_URL = re.compile(r"base_url for OpenAI's clients: (http://127\.0\.0\.1:\d+/v1)\n")
HI = {
    "messages": [{"role": "user", "content": "Who says moo?"}],
    "seed": 1,
    "max_tokens": 100,
    "logit_bias": {str(special): -100 for special in range(291, 300)},  # so that it does not end
}

# The program, whose answers take two seconds at least, so that a signal comes in their middle.
SLOWLY = """
import time
from mlxchat.__main__ import run_program
from mlxchat.engine.continuous import ContinuousBatch

step = ContinuousBatch.step

def slow_step(batch):
    time.sleep(0.02)
    return step(batch)

ContinuousBatch.step = slow_step
run_program()
"""


def answer(url: str, **more: object) -> str:
    reply = httpx.post(f"{url}/chat/completions", json={**HI, **more}, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][-1]["message"]["content"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_serves_until_it_is_asked_to_end(
    number: signal.Signals, code: int, home: Path, tmp_path: Path
) -> None:
    small_runs(home, tmp_path)
    command = [sys.executable, "-c", SLOWLY, "serve", "--port", "0", "--slots", "2"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout and process.stderr
            announced = process.stdout.readline()
            assert announced.startswith("Serving quickstart-sft/step_000002, called quickstart-sft")
            [url] = BASE_URL.findall(process.stdout.readline())
            page = url.removesuffix("v1")
            assert process.stdout.readline() == f"A page to talk to it: {page}\n"
            assert process.stdout.readline() == "Press Ctrl-C to stop the server.\n"
            assert httpx.get(page, timeout=60).text.startswith("<!doctype html>")
            alone = answer(url)
            texts: list[str] = []
            asking = threading.Thread(target=lambda: texts.append(answer(url, seed=0, n=2)))
            asking.start()
            metrics = url.replace("/v1", "/metrics")
            while "mlxchat_running 2" not in httpx.get(metrics, timeout=60).text:
                assert asking.is_alive()
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    asking.join()
    assert texts == [alone]  # the second answer, whose seed is 1
    assert process.returncode == code
    assert re.search(
        r"^Finishing 2 answers, for at most 30 seconds\. Press Ctrl-C again", errors, re.M
    )
    assert errors.count("POST /v1/chat/completions 200") == 2
    assert "moo?" not in errors


@pytest.mark.slow
def test_adapters_are_models_of_their_own(home: Path, tmp_path: Path) -> None:
    small_runs(home, tmp_path)
    named = ["--adapter", "quickstart-style", "--adapter", "pirate=quickstart-style"]
    command = [sys.executable, "-m", "mlxchat", "serve", "--port", "0", *named]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout
            announced = process.stdout.readline()
            assert announced.startswith("Serving quickstart/step_000004, called quickstart.")
            [url] = BASE_URL.findall(process.stdout.readline())
            assert process.stdout.readline().startswith("A page to talk to it: http://127.0.0.1:")
            assert "It is a base model" in process.stdout.readline()
            names = ["quickstart", "quickstart-style", "pirate"]
            assert process.stdout.readline().rstrip().endswith(f"{names[1]}, {names[2]}.")
            listed = httpx.get(f"{url}/models", timeout=60).json()["data"]
            assert [each["id"] for each in listed] == names
            asked = {"prompt": "The cow", "max_tokens": 20, "temperature": 0}
            texts = [
                httpx.post(f"{url}/completions", json={**asked, "model": name}, timeout=60).json()
                for name in names
            ]
            base, style, pirate = (text["choices"][0]["text"] for text in texts)
            assert base != style == pirate
        finally:
            process.kill()

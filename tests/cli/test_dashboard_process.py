"""``paretomerge dashboard`` as a process: it answers on the loopback address, and Ctrl-C ends it with 0."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_is_served_until_ctrl_c(nano_zoo: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from search.cli import main; main()"]
    config = Path(__file__).parents[2] / "configs" / "nano.yaml"
    few = ["--set", "search.budget.candidates=14", "--runs", str(tmp_path), "--display", "none"]
    subprocess.run([*program, "run", str(config), *few], check=True, timeout=250)
    command = [*program, "dashboard", str(tmp_path / "nano"), "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
            assert found is not None
            with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/api/studies/0", timeout=60) as answer:
                study = json.loads(answer.read())
            assert len(study["trials"]) == 14 and study["directions"] == ["maximize", "maximize"]
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()

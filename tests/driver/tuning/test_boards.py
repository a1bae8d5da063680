"""Devices behind a tracker, on the loopback interface; one of them dies in the middle."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from rpc import KEY, free_port, kill, started, until_known
from small_tuning import TARGET, tasks, tune

from qcompiler.driver.tuning import log as logs
from qcompiler.driver.tuning.boards import BoardFleet
from qcompiler.errors import TuningError


def test_without_a_tracker_it_says_how_to_start_one() -> None:
    with pytest.raises(TuningError, match=r"no tracker answers at .*rpc_tracker"):
        BoardFleet(TARGET, 1, ("127.0.0.1", free_port()), KEY, 10, lambda line: None)


@pytest.mark.slow
def test_a_fleet_with_a_dying_device_finishes(tmp_path: Path) -> None:
    tracker = ("127.0.0.1", free_port())
    port = str(tracker[1])
    with started("rpc_tracker", "--port", port, "--port-end", str(tracker[1] + 1)):
        until_known(tracker, 0)
        ports = [free_port() for _ in range(2)]
        options = [
            ["--port", str(p), "--port-end", str(p + 1), "--tracker", f"127.0.0.1:{port}", "--key", KEY]
            for p in ports
        ]
        with started("rpc_server", *options[0]) as doomed, started("rpc_server", *options[1]):
            until_known(tracker, 2)
            lines: list[str] = []

            def say(line: str) -> None:
                lines.append(line)
                if "expected" in line:  # a round has been measured
                    kill(doomed)

            fleet = BoardFleet(TARGET, 2, tracker, KEY, 30, say)
            assert "2 devices" in lines[0]
            result = tune(tmp_path, fleet, say, trials=8)
    assert doomed.returncode == -signal.SIGKILL
    assert result.trials == 8
    assert sum(map(len, logs.read(tmp_path).records.values())) == 8
    assert {t.name for t in tasks()} <= {k.name for k in result.kernels}

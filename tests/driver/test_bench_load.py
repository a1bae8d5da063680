"""What other programs take is seen, and what the measured ones take is not held against them."""

from __future__ import annotations

import subprocess
import sys
import time

from qcompiler.driver.bench_load import OtherPrograms

SPIN = "while True: pass"


def test_own_processes_are_no_others() -> None:
    process = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        own, others = OtherPrograms([process.pid]), OtherPrograms([])
        time.sleep(0.5)
        mine, theirs = own.cores(), others.cores()
    finally:
        process.kill()
        process.wait()
    # The process counts for about one core; whatever else runs is in both numbers.
    assert theirs - mine > 0.3

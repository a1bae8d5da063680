"""The number of threads: counted from the machine, checked, and set in each calling thread's pool."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from qcompiler.errors import ConfigError
from qcompiler.runtime import load
from qcompiler.runtime.library import global_function
from qcompiler.runtime.threads import (
    available_cpus,
    check_threads,
    configure,
    cpu_quota,
    default_threads,
    physical_cores,
)

needs_two_cpus = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_siblings_count_as_one_core(tmp_path: Path) -> None:
    for cpu, siblings in ((0, "0,4"), (4, "0,4"), (1, "1,5")):
        write(tmp_path / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{siblings}\n")
    assert physical_cores((0, 4), tmp_path) == 1
    assert physical_cores((0, 1, 4), tmp_path) == 2
    assert physical_cores((0, 7, 8), tmp_path) == 3


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
    ],
)
def test_quota_of_the_control_group(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    for name, text in files.items():
        write(tmp_path / "fs/cgroup" / name, text)
    assert cpu_quota(tmp_path) == quota


def test_default_is_within_what_the_process_may_use() -> None:
    assert 1 <= default_threads() <= len(available_cpus())
    assert check_threads(None) == default_threads()


@pytest.mark.parametrize("threads", [0, -1, 10**6, True, 1.0, "2"])
def test_number_out_of_range_is_refused(threads: object) -> None:
    with pytest.raises(ConfigError, match="this process may use"):
        check_threads(threads)  # type: ignore[arg-type]


@needs_two_cpus
def test_each_calling_thread_is_configured_and_keeps_its_cpus(small_bundle_path: Path) -> None:
    load(small_bundle_path)  # brings TVM's runtime into the process
    seen: list[int] = []
    affinities = set()

    def work() -> None:
        for threads in (1, 2, 1):
            configure(threads)
            seen.append(global_function("runtime.NumThreads")())
            affinities.add(frozenset(os.sched_getaffinity(0)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [1, 2, 1]
    assert affinities == {frozenset(available_cpus())}


def run(code: str, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@needs_two_cpus
def test_pool_made_too_small_by_other_code_is_told(small_bundle_path: Path) -> None:
    said = run(
        """
        import sys
        from qcompiler.runtime import load
        from qcompiler.runtime.library import global_function
        from qcompiler.runtime.threads import configure
        from qcompiler.errors import ConfigError
        load(sys.argv[1])
        assert global_function("runtime.NumThreads")() == 1
        configure(1)
        try:
            configure(2)
        except ConfigError as error:
            print(error)
        """,
        str(small_bundle_path),
        TVM_NUM_THREADS="1",
    )
    assert "has room for 1, not 2" in said


@needs_two_cpus
def test_environment_does_not_limit_the_number(small_bundle_path: Path) -> None:
    said = run(
        """
        import sys
        from qcompiler.runtime import load
        from qcompiler.runtime.library import global_function
        from qcompiler.runtime.threads import configure
        load(sys.argv[1], threads=2)
        configure(2)
        print(global_function("runtime.NumThreads")())
        """,
        str(small_bundle_path),
        TVM_NUM_THREADS="1",
    )
    assert said == "2\n"


def test_forked_process_is_told_instead_of_hanging(small_bundle_path: Path) -> None:
    said = run(
        """
        import os, sys
        from qcompiler.runtime import load
        from qcompiler.runtime.threads import configure
        from qcompiler.errors import ConfigError
        load(sys.argv[1])
        configure(1)
        child = os.fork()
        if child == 0:
            try:
                configure(1)
            except ConfigError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        """,
        str(small_bundle_path),
    )
    assert "was forked after the model had run" in said

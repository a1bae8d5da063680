"""ExecuTorch with XNNPACK, in an interpreter of its own if the user names one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np

from qcompiler.driver.peers.base import Made, Peer, PeerOptions, Probe, Request, Stage, size_of
from qcompiler.errors import BuildError

SETTINGS = {
    "quantization": "XNNPACKQuantizer, symmetric per-channel static configuration, by torchao's prepare_pt2e and "
    "convert_pt2e",
    "compiler": "to_edge_transform_and_lower with XnnpackPartitioner",
    "session": "XNNPACK's thread pool reset to threads; portable Python runtime",
}
_SCRIPT = "executorch_build.py"


def prepare(request: Request, stage: Stage) -> Made:
    """Runs the script that quantizes and lowers in the interpreter that has ExecuTorch."""
    from qcompiler.driver.peers.base import SESSIONS

    batches = [inputs for _, inputs in request.samples.batches()]
    data, path = request.folder / "calibration.npz", request.folder / "model.pte"
    np.savez(data, *(np.stack(arrays) for arrays in zip(*batches, strict=True)))
    command = [
        interpreter(request.options),
        str(SESSIONS.parent / _SCRIPT),
        str(request.program),
        str(data),
        str(path),
    ]
    with stage("quantize and compile, imports included"):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout)
    if done.returncode:
        words = done.stdout.strip().splitlines()
        raise BuildError(
            f"{_SCRIPT} ended with status {done.returncode}: {words[-1] if words else 'no output'}"
        )
    data.unlink()
    return request.for_all_threads(path, size_of(path))


def interpreter(options: PeerOptions) -> str:
    return sys.executable if options.executorch_python is None else str(options.executorch_python)


def probe(peer: Peer, options: PeerOptions) -> Probe:
    """Asks the interpreter for the package."""
    if options.executorch_python is None and importlib.util.find_spec("executorch") is None:
        return Probe(
            "",
            "not installed: executorch (install it here, or beside torch in an environment of its own, and name that "
            "with --executorch-python)",
        )
    code = "import importlib.metadata as m; print(m.version('torch'), m.version('executorch'))"
    done = subprocess.run([interpreter(options), "-c", code], capture_output=True, text=True)
    if done.returncode:
        words = done.stderr.strip().splitlines()
        return Probe("", f"{interpreter(options)} has no ExecuTorch: {words[-1] if words else 'no output'}")
    return Probe(done.stdout.split()[1])


PEER = Peer(
    "executorch",
    "int8",
    ("executorch",),
    prepare,
    "executorch:open_session",
    SETTINGS,
    probe=probe,
    interpreter=interpreter,
)

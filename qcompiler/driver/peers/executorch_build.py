"""Makes a ``.pte`` for XNNPACK. A script that stands alone, because ExecuTorch may live in another interpreter.

Arguments: the float ``.pt2``, an ``.npz`` with an array an input (axes: run, then the input's own), the file to write.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main() -> None:
    import numpy as np
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    source, data, destination = sys.argv[1:]
    with np.load(data) as archive:
        arrays = [archive[name] for name in archive.files]
    batches: list[tuple[torch.Tensor, ...]] = [
        tuple(torch.from_numpy(array[run].copy()) for array in arrays) for run in range(len(arrays[0]))
    ]
    quantizer: Any = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    module: Any = torch.export.load(source).module(check_guards=False)
    prepared = prepare_pt2e(module, quantizer)
    with torch.no_grad():
        for batch in batches:
            prepared(*batch)
        program = torch.export.export(convert_pt2e(prepared), batches[0])
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    Path(destination).write_bytes(lowered.buffer)


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, whose names would hide packages: it has an executorch.py
    main()

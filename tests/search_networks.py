"""Networks made by hand, for tests of the search."""

from __future__ import annotations

from qcompiler.quantization.network import Network, Site, Tensor


def make(sites: list[tuple[str, list[int]]], float_reads: set[int]) -> Network:
    """A network from each site's kind and the sites that it reads, -1 for the model's input."""
    read: dict[int, list[int]] = {-1: []}
    for s, (_, sources) in enumerate(sites):
        read.setdefault(s, [])
        for source in sources:
            if s not in read[source]:
                read[source].append(s)
    tensors = [
        Tensor(f"t{k}", None if k < 0 else k, tuple(readers), k in float_reads or not readers)
        for k, readers in read.items()
    ]
    return Network(
        tuple(
            Site(
                f"s{s}",
                kind,
                kind == "max_pool2d",
                kind != "add",
                tuple(k + 1 for k in dict.fromkeys(sources)),
            )
            for s, (kind, sources) in enumerate(sites)
        ),
        tuple(tensors),
    )

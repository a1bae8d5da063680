"""Trains a transformer encoder on text, and gives it the outlier channels of large ones.

    python benchmarks/train_text.py sts-dev.csv --output FOLDER [--form own|torch] [--epochs N]

The task: which of six collections a pair of sentences comes from (STS benchmark, tab-separated). Words are hashed to
ids. A quarter of the pairs is the test set. The folder gets ``text.pt2``, ``text_outliers.pt2``, ``calibration.npz`` and
``test.npz`` with labels, which ``benchmarks/accuracy.py`` and every command of ``qcompile`` take.

Transformers of billions of weights have a few channels in their layer norms that are tens of times larger than the
others; small ones have not. ``text_outliers.pt2`` is the same function with such channels: the layer norm's weight and
bias are multiplied by a factor, the columns of the linear layers behind it divided by it.
"""

from __future__ import annotations

import argparse
import copy
import math
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

WORDS, LENGTH, WIDTH, HEADS, LAYERS, CLASSES = 4096, 48, 256, 4, 4, 6

OUTLIERS = 6
"""Channels of a layer norm that become outliers: 2 %."""


class Block(nn.Module):
    """A layer of an encoder, norms first, its attention written out as in BERT: query, key, value and output."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.output = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        normal = self.norm1(x)
        heads = (
            layer(normal).view(*x.shape[:2], HEADS, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask[:, None, None])
        x = x + self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))

    def before_linear(self) -> list[tuple[nn.LayerNorm, list[torch.Tensor]]]:
        """Each layer norm, and the weights that read it."""
        return [
            (self.norm1, [self.query.weight, self.key.weight, self.value.weight]),
            (self.norm2, [self.up.weight]),
        ]


class TorchBlock(nn.TransformerEncoderLayer):
    """The same by torch's own layer, which has query, key and value in one weight."""

    def __init__(self) -> None:
        super().__init__(WIDTH, HEADS, 4 * WIDTH, activation="gelu", batch_first=True, norm_first=True)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super().forward(x, src_key_padding_mask=~mask)

    def before_linear(self) -> list[tuple[nn.LayerNorm, list[torch.Tensor]]]:
        """Each layer norm, and the weights that read it."""
        return [(self.norm1, [self.self_attn.in_proj_weight]), (self.norm2, [self.linear1.weight])]


class Encoder(nn.Module):
    """Ids [N, 48] (int64, 0 for none) to six logits."""

    def __init__(self, block: type[Block | TorchBlock]) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.classes = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        mask = ids != 0
        x = self.words(ids) + self.positions
        for block in self.blocks:
            x = block(x, mask)
        return self.classes(self.norm(x)[:, 0])


def read(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int64 [N, 48] and labels int64 [N]."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    sources = sorted({row[1] for row in rows})
    ids = np.zeros((len(rows), LENGTH), np.int64)
    for k, row in enumerate(rows):
        words = ["<class>", *_words(row[5]), "<between>", *_words(row[6])][:LENGTH]
        ids[k, : len(words)] = [1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in words]
    return torch.from_numpy(ids), torch.tensor([sources.index(row[1]) for row in rows])


def _words(sentence: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", sentence.lower())


@torch.no_grad()
def add_outliers(model: Encoder, factor: float) -> Encoder:
    """The same function with channels that are ``factor`` times as large behind each layer norm of a block."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        assert isinstance(block, (Block, TorchBlock))
        for norm, weights in block.before_linear():
            channels = torch.randperm(WIDTH)[:OUTLIERS]
            norm.weight[channels] *= factor
            norm.bias[channels] *= factor
            for weight in weights:
                weight[:, channels] /= factor
    return model


@torch.no_grad()
def accuracy(model: Encoder, ids: torch.Tensor, labels: torch.Tensor) -> float:
    return float((model.eval()(ids).argmax(1) == labels).float().mean()) * 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--form", choices=("own", "torch"), default="own")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--factor", type=float, default=30.0, help="of the outlier channels")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    ids, labels = read(arguments.data)
    order = torch.randperm(len(ids))
    ids, labels = ids[order], labels[order]
    test, train = slice(0, len(ids) // 4), slice(len(ids) // 4, None)
    model = Encoder(Block if arguments.form == "own" else TorchBlock)
    batch, steps = 32, math.ceil((len(ids) - len(ids) // 4) / 32) * arguments.epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.rate, total_steps=steps)
    x, y = ids[train], labels[train]
    for epoch in range(arguments.epochs):
        model.train()
        for chosen in torch.randperm(len(x)).split(batch):
            loss = F.cross_entropy(model(x[chosen]), y[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: test {accuracy(model, ids[test], labels[test]):.2f} %", flush=True)

    arguments.output.mkdir(parents=True, exist_ok=True)
    np.savez(arguments.output / "calibration.npz", ids=x[:256].numpy())
    np.savez(arguments.output / "test.npz", ids=ids[test].numpy(), labels=labels[test].numpy())
    model.eval()
    for name, changed in (("text", model), ("text_outliers", add_outliers(model, arguments.factor).eval())):
        print(f"{name}: test {accuracy(changed, ids[test], labels[test]):.2f} %")
        torch.export.save(torch.export.export(changed, (x[:1],)), arguments.output / f"{name}.pt2")


if __name__ == "__main__":
    main()

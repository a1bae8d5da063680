"""Errors of a quantized model by layer: a table for the terminal, and a page with plots."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rich.console import Group

from qcompiler.errors import ConfigError
from qcompiler.report.tables import table
from qcompiler.report.units import decibels

COLORS = {"clipping": "#c0392b", "activation rounding": "#2c6fbb", "weight rounding": "#b9a44c"}
"""Of the causes; told apart without red and green beside each other."""

OUTLIER = 8.0
"""Range beside the median channel's from which a channel is pointed out: it leaves the others less than five bits."""


class Layer(Protocol):
    """What is shown of a layer; see :class:`qcompiler.quantization.analyze.LayerError`."""

    @property
    def name(self) -> str: ...
    @property
    def operator(self) -> str: ...
    @property
    def sqnr_db(self) -> float: ...
    @property
    def model_sqnr_db(self) -> float: ...
    @property
    def shares(self) -> Mapping[str, float]: ...
    @property
    def cause(self) -> str | None: ...
    @property
    def outlier_channel(self) -> int | None: ...
    @property
    def outlier_ratio(self) -> float | None: ...
    @property
    def only_db(self) -> float: ...
    @property
    def without_db(self) -> float: ...


class Errors(Protocol):
    """What is shown of a model."""

    @property
    def model_db(self) -> float: ...
    @property
    def samples(self) -> int: ...
    @property
    def layers(self) -> Sequence[Layer]: ...


COLUMNS = (
    "layer", "operators", ">SQNR", ">in the model", ">clipping", ">act. rounding", ">weight rounding", ">only it",
    ">all but it", "remark",
)  # fmt: skip


def worst_first(errors: Errors) -> list[Layer]:
    """The layers by what each alone does to the outputs."""
    return sorted(errors.layers, key=lambda layer: layer.only_db)


def remark(layer: Layer) -> str:
    """The cause of most of a layer's error, and its outlier channel if there is one."""
    parts = [] if layer.cause is None else [layer.cause]
    if layer.outlier_ratio is not None and layer.outlier_ratio >= OUTLIER:
        parts.append(
            f"channel {layer.outlier_channel} has {layer.outlier_ratio:.3g} times the median's range"
        )
    return ", ".join(parts)


def _cells(layer: Layer) -> tuple[str, ...]:
    shares = (f"{100 * layer.shares[cause]:.0f} %" for cause in COLORS)
    return (
        layer.name,
        layer.operator,
        decibels(layer.sqnr_db),
        decibels(layer.model_sqnr_db),
        *shares,
        decibels(layer.only_db),
        decibels(layer.without_db),
        remark(layer),
    )


def analysis_table(errors: Errors, count: int | None = None) -> Group:
    """The layers as a table, the worst first; all or the first ``count``."""
    shown = worst_first(errors)[:count]
    title = f"Layers, worst first (outputs of the whole model: {decibels(errors.model_db)})"
    return table(title, COLUMNS, map(_cells, shown))


def analysis_page(title: str, target: str, errors: Errors) -> str:
    """An HTML page that needs no other file.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plots = "".join(
        f"<figure>{_svg(draw, errors)}</figure>" for draw in (draw_effects, draw_causes, draw_ratios)
    )
    heads = "".join(f"<th>{html.escape(column.removeprefix('>'))}</th>" for column in COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(layer)) + "</tr>\n"
        for layer in worst_first(errors)
    )
    return _PAGE.format(
        title=html.escape(title),
        target=html.escape(target),
        model=decibels(errors.model_db),
        samples=errors.samples,
        plots=plots,
        heads=heads,
        rows=rows,
    )


def _svg(draw: Callable[[Any, Errors], None], errors: Errors) -> str:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "the page needs matplotlib for its plots; pip install 'qcompiler[plots]'"
        ) from error
    # Names stand below the bars: a plot is as wide as the model is deep.
    width = min(60.0, 3.0 + 0.28 * len(errors.layers))
    figure = Figure(figsize=(max(8.0, width), 4.6), layout="constrained")
    draw(figure.subplots(), errors)
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "qcompiler", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _finite(values: Sequence[float]) -> list[float]:
    """Ratios for a plot; one without noise stands above the others."""
    top = max((v for v in values if math.isfinite(v)), default=0.0) + 6.0
    return [v if math.isfinite(v) else top for v in values]


def _names_below(axes: Any, errors: Errors) -> None:
    names = [layer.name if len(layer.name) <= 32 else f"…{layer.name[-31:]}" for layer in errors.layers]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def draw_effects(axes: Any, errors: Errors) -> None:
    """The noise in the outputs that each layer makes alone, and that is gone without it, in percent of the model's."""
    whole = 10.0 ** (-errors.model_db / 10.0)
    only = [100 * 10.0 ** (-layer.only_db / 10.0) / whole for layer in errors.layers]
    gone = [100 * (1 - 10.0 ** (-layer.without_db / 10.0) / whole) for layer in errors.layers]
    places = range(len(only))
    axes.bar([p - 0.2 for p in places], only, 0.4, color="#2c6fbb", label="quantizing only it makes")
    axes.bar([p + 0.2 for p in places], gone, 0.4, color="#c0392b", label="leaving only it in float removes")
    axes.axhline(0.0, color="#444444", linewidth=0.8)
    axes.set_ylabel("% of the outputs' noise")
    axes.set_title("Effect of each layer on the model's outputs", loc="left")
    axes.legend(frameon=False)
    _names_below(axes, errors)


def draw_causes(axes: Any, errors: Errors) -> None:
    """The causes' shares of each layer's own error."""
    places, bottom = range(len(errors.layers)), [0.0] * len(errors.layers)
    for cause, color in COLORS.items():
        shares = [100 * layer.shares[cause] for layer in errors.layers]
        axes.bar(places, shares, 0.75, bottom=bottom, color=color, label=cause)
        bottom = [b + s for b, s in zip(bottom, shares, strict=True)]
    axes.set_ylabel("% of the layer's own error")
    axes.set_title("Causes", loc="left")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.0, 1.02), ncols=3)
    axes.set_ylim(0, 115)
    _names_below(axes, errors)


def draw_ratios(axes: Any, errors: Errors) -> None:
    """Signal to noise at each layer: its own, and with the errors of the layers before it."""
    places = range(len(errors.layers))
    for label, color, values in (
        ("it alone quantized", "#2c6fbb", [layer.sqnr_db for layer in errors.layers]),
        ("in the quantized model", "#c0392b", [layer.model_sqnr_db for layer in errors.layers]),
    ):
        axes.plot(places, _finite(values), marker="o", markersize=3, color=color, label=label)
    axes.set_ylabel("SQNR in dB")
    axes.set_title("Signal to quantization noise at each layer's output", loc="left")
    axes.legend(frameon=False)
    _names_below(axes, errors)


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 2rem; color: #222; }}
figure {{ margin: 1.5rem 0; overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.85rem; }}
th, td {{ padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }}
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2), th:last-child, td:last-child {{ text-align: left; }}
</style></head><body>
<h1>{title}</h1>
<p>Quantized for {target}: {model} signal to quantization noise in the outputs, measured on {samples} samples.
Every quantizer belongs to one layer: a weight's to the layer that reads it, an activation's to the layer that gives
it. <i>SQNR</i> is of the layer's output with an exact input, <i>in the model</i> with the errors before it;
<i>only it</i> and <i>all but it</i> are of the model's outputs when only this layer is quantized, and when all others
are.</p>
{plots}
<table><thead><tr>{heads}</tr></thead><tbody>
{rows}</tbody></table>
</body></html>
"""

"""Claims: ticks are round and enclose the data, an envelope keeps every extreme, what is not finite is not drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmssl.report.charts import Series, envelope, line_chart, linear_ticks, log_ticks, scatter, short, tick_texts


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.6, 3.1), (-3, -1.99), (0, 1e-3), (7, 7), (0, 0), (1e6, 3e6), (-1, 1e9)]
)
def test_linear_ticks_enclose_and_are_round(low: float, high: float) -> None:
    ticks = linear_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 2 <= len(ticks) <= 9
    step = ticks[1] - ticks[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - factor) for factor in (1, 2, 5, 10)) < 1e-6


@pytest.mark.parametrize(("low", "high"), [(1e-4, 10), (0.5, 3), (2, 2), (1e-9, 1e-8)])
def test_log_ticks_enclose(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert ticks[0] <= low * (1 + 1e-9)
    assert high * (1 - 1e-9) <= ticks[-1]
    assert ticks == sorted(set(ticks))
    assert len(ticks) >= 2


def test_an_envelope_equals_a_plain_computation() -> None:
    x = np.arange(10_000.0)
    y = np.random.default_rng(0).normal(size=len(x))
    y[777] = np.nan
    found = envelope(Series("y", x, y), bins=100)
    assert len(found.x) == 100
    for i in range(100):
        part = [v for j, v in enumerate(y) if min(int(j / 9999 * 100), 99) == i and not math.isnan(v)]
        assert found.low[i] == min(part)
        assert found.high[i] == max(part)
        assert found.mean[i] == pytest.approx(sum(part) / len(part))


def test_nothing_finite_is_no_chart() -> None:
    empty = Series("y", np.arange(3.0), np.full(3, np.nan))
    assert line_chart([empty], title="t") == ""
    assert line_chart([Series("y", np.arange(3.0), np.array([-1.0, 0.0, -2.0]))], title="t", log=True) == ""
    one = line_chart([Series("y", np.array([5.0]), np.array([2.0]))], title="t")
    assert "nan" not in one
    assert "<circle" in one


def test_labels_are_escaped_and_the_rest_is_grey() -> None:
    names = [f"<{i}>" for i in range(12)]
    svg = scatter(np.random.default_rng(0).normal(size=(24, 2)), names * 2, title="map & more")
    assert "<0>" not in svg
    assert "map &amp; more" in svg
    assert svg.count('class="spots') == 11
    assert "others" in svg


@pytest.mark.parametrize(
    ("low", "high"), [(-1.3422, -1.3408), (0, 1), (0, 2e-5), (9.05, 9.25), (0, 30000), (-0.3, 0.3)]
)
def test_tick_labels_differ_and_say_their_value(low: float, high: float) -> None:
    ticks = linear_ticks(low, high)
    texts = tick_texts(ticks)
    assert len(set(texts)) == len(ticks)
    assert [float(text.replace("k", "e3")) for text in texts] == pytest.approx(ticks, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (250, "250"), (20000, "20k"), (3e6, "3M"), (3e-4, "3e-4"), (-2.5, "-2.5")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text

"""Rates over time: a bar for the terminal, a line as an SVG picture."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 300, 64, 16, 40, 44
BAR_CHARS = 48
FULL = 1500.0
"""A rate that fills the bar."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def bar(value: float) -> str:
    """A rate as a bar of characters."""
    eighths = round(min(value / FULL, 1.0) * BAR_CHARS * 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def svg(points: Sequence[tuple[float, float]], *, title: str) -> str:
    """A picture of points (seconds, rate)."""
    last = max((seconds for seconds, _ in points), default=1.0)
    top = _round_up(max((rate for _, rate in points), default=1.0))

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / last

    def y(rate: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate / top

    lines = []
    for part in range(5):
        rate = top * part / 4
        lines.append(f'<line x1="{LEFT}" y1="{y(rate):.1f}" x2="{WIDTH - RIGHT}" y2="{y(rate):.1f}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y(rate) + 4:.1f}" text-anchor="end">{rate:g}</text>')
    lines += (
        f'<text x="{x(seconds):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{seconds}</text>'
        for seconds in range(0, int(last) + 1, max(1, int(last) // 8))
    )
    track = " ".join(f"{x(seconds):.1f},{y(rate):.1f}" for seconds, rate in points)
    area = f"{x(points[0][0]):.1f},{y(0):.1f} {track} {x(last):.1f},{y(0):.1f}" if points else ""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#333">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
            *lines,
            f'<polygon points="{area}" fill="#4477aa" fill-opacity="0.15"/>',
            f'<polyline points="{track}" fill="none" stroke="#4477aa" stroke-width="2"/>',
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">seconds</text>',
            "</svg>",
            "",
        ]
    )


def _round_up(value: float) -> float:
    """The next number that makes a good end of a scale."""
    step = 1.0
    while step * 10 < value:
        step *= 10
    return next(step * factor for factor in (1, 2, 4, 8, 10) if step * factor >= value)

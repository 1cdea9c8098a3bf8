"""The table as bars: an SVG without any library, light and dark."""

COLOURS = {"millrace": "#d9480f", "llama.cpp": "#868e96", "openvino": "#4263eb"}


def number(value):
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def svg(results, title):
    """Bars of all rows that are rates, each row scaled to its own largest value."""
    left, width, bar, gap = 300, 420, 15, 14
    y, parts = 64, []
    for row in results:
        entries = [(name, figures["median"]) for name, figures in row["engines"].items()]
        largest = max(value for _, value in entries)
        parts.append(f'<text x="{left - 12}" y="{y + bar * len(entries) / 2 + 4:.0f}" text-anchor="end" class="label">{row["what"]}</text>')
        for name, value in entries:
            length = max(2, width * value / largest)
            parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 3}" rx="2" fill="{COLOURS[name]}"><title>{name}: {number(value)} {row["unit"]}</title></rect>')
            parts.append(f'<text x="{left + length + 6:.1f}" y="{y + bar - 5}" class="value">{number(value)} {row["unit"]}</text>')
            y += bar
        y += gap
    legend, x = [], left
    for name, colour in COLOURS.items():
        legend.append(f'<rect x="{x}" y="38" width="11" height="11" rx="2" fill="{colour}"/><text x="{x + 16}" y="48" class="value">{name}</text>')
        x += 110
    style = (
        "text{font-family:system-ui,sans-serif;fill:#212529}.label{font-size:13px}.value{font-size:11px}.title{font-size:15px;font-weight:600}"
        "@media(prefers-color-scheme:dark){text{fill:#e9ecef}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="860" height="{y + 6}" viewBox="0 0 860 {y + 6}" role="img" aria-label="{title}">'
        f'<style>{style}</style><text x="16" y="24" class="title">{title}</text>{"".join(legend)}{"".join(parts)}</svg>\n'
    )


def lines(panels, title):
    """Panels side by side, each `(words, x label, {name: [(x, y)]})`, with both axes logarithmic to the base 2 and 10."""
    import math

    width, height, left, top = 280, 190, 52, 70
    parts = []
    for index, (words, label, series) in enumerate(panels):
        x0, y0 = 16 + left + index * (width + left + 24), top
        xs = [x for points in series.values() for x, _ in points]
        ys = [y for points in series.values() for _, y in points if y > 0]
        low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)) + 1e-9)
        place_x = lambda x: x0 + width * (math.log2(x) - math.log2(min(xs))) / max(1e-9, math.log2(max(xs)) - math.log2(min(xs)))
        place_y = lambda y: y0 + height * (1 - (math.log10(y) - low) / max(1, high - low))
        parts.append(f'<text x="{x0}" y="{y0 - 10}" class="label">{words}</text>')
        for power in range(low, high + 1):
            y = place_y(10**power)
            parts.append(f'<line x1="{x0}" x2="{x0 + width}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/><text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end" class="value">{10**power:,g}</text>')
        for x in sorted(set(xs)):
            parts.append(f'<text x="{place_x(x):.1f}" y="{y0 + height + 16}" text-anchor="middle" class="value">{x:g}</text>')
        parts.append(f'<text x="{x0 + width / 2}" y="{y0 + height + 34}" text-anchor="middle" class="value">{label}</text>')
        for number_of, (name, points) in enumerate(series.items()):
            colour = ["#d9480f", "#4263eb", "#2b8a3e"][number_of % 3]
            path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in points if y > 0)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            for x, y in points:
                if y > 0:
                    parts.append(f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="3" fill="{colour}"><title>{name}: {number(y)} at {x:g}</title></circle>')
            parts.append(f'<text x="{x0 + 8}" y="{y0 + 14 + 14 * number_of}" class="value" style="fill:{colour}">{name}</text>')
    style = (
        "text{font-family:system-ui,sans-serif;fill:#212529}.label{font-size:13px}.value{font-size:11px}.title{font-size:15px;font-weight:600}"
        ".grid{stroke:#adb5bd;stroke-width:.5}@media(prefers-color-scheme:dark){text{fill:#e9ecef}}"
    )
    total = 16 + len(panels) * (width + left + 24)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{top + height + 50}" viewBox="0 0 {total} {top + height + 50}" role="img" aria-label="{title}">'
        f'<style>{style}</style><text x="16" y="24" class="title">{title}</text>{"".join(parts)}</svg>\n'
    )

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

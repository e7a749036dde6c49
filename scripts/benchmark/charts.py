"""The charts of docs/benchmarks.md, drawn by matplotlib: SVG, the same bytes for the same figures, readable on light and on dark."""

import re
import statistics

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update(
    {
        # Ids by hash and not by chance; text stays text.
        "svg.hashsalt": "kitfs",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
    }
)

import matplotlib.pyplot as plt  # noqa: E402

# A grey that stands out from white and from black, and two colours that do, which differ for the colour-blind too.
TEXT, OURS, THEIRS, MISSED, GRID = "#7d8590", "#2f81f7", "#9aa4af", "#d9822b", "#7d859055"


def draw(rows, folder):
    """Draws what there are rows for, and says which files it wrote, with a title for each."""
    folder.mkdir(parents=True, exist_ok=True)
    of = lambda *groups: [row for row in rows if row.group in groups]
    drawn = []
    for name, title, chosen, how in [
        ("goals", "How far from the goal", [row for row in rows if row.goal is not None], goals),
        ("cold", "Cold: seconds from nothing to the last byte read", [row for row in of("cold", "latency", "tls", "layers", "compressed") if row.theirs], pairs),
        ("cpu", "CPU seconds of the worker for a GB that comes by TLS", [row for row in of("tls") if not row.theirs and not row.what.endswith("in all")], bars),
        ("readers", "Small files read in a second", [row for row in of("readers") if "files read in a second" in row.what], readers),
    ]:
        if chosen:
            figure = how(chosen)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None}, transparent=True, bbox_inches="tight")
            plt.close(figure)
            tidy(folder / f"{name}.svg")
            drawn.append((f"{name}.svg", title))
    return drawn


def goals(rows):
    """A bar for each goal: what was measured as a share of what is allowed."""
    rows = list(reversed(rows))
    shares = []
    for row in rows:
        share = row.value / row.goal
        shares.append(1 / share if row.at_least else share)
    figure, axes = sheet(len(rows) * 0.3 + 1)
    axes.barh(range(len(rows)), shares, color=[OURS if row.met else MISSED for row in rows], height=0.65)
    axes.axvline(1, color=TEXT, linewidth=1.2, linestyle="--")
    axes.set_yticks(range(len(rows)), [label(row) for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    for place, share in enumerate(shares):
        axes.text(min(share, 2.4) + 0.02, place, f"{share:.0%}", va="center", color=TEXT, fontsize=9)
    axes.set_xlim(0, min(max([*shares, 1]), 2.4) * 1.12)
    axes.set_xlabel("share of what the goal allows: left of the line it is met")
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    return figure


def pairs(rows):
    """Two bars for each comparison, and a dot for each round."""
    rows = list(reversed(rows))
    figure, axes = sheet(len(rows) * 0.62 + 1)
    for place, row in enumerate(rows):
        for offset, figures, colour, name in [(0.2, row.ours, OURS, "kitfs"), (-0.2, row.theirs, THEIRS, "the other")]:
            axes.barh(place + offset, row.of(figures), height=0.36, color=colour, label=name if place == 0 else None)
            axes.plot(figures, [place + offset] * len(figures), ".", color=TEXT, markersize=4)
        axes.text(max(row.ours + row.theirs) * 1.01 + 0.02, place, f" {row.ratio:.2f}", va="center", color=TEXT, fontsize=9)
    names = [f"{short(row)}\n{plain(row.beside)}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8.5, multialignment="right")
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("seconds; a bar is the best round, a dot each one, the number the ratio")
    legend(axes)
    return figure


def bars(rows):
    rows = list(reversed(rows))
    figure, axes = sheet(len(rows) * 0.38 + 0.9)
    figures = [statistics.median(row.ours) for row in rows]
    axes.barh(range(len(rows)), figures, color=OURS, height=0.65)
    axes.set_yticks(range(len(rows)), [row.what.rsplit(": ", 1)[1] for row in rows])
    for place, value in enumerate(figures):
        axes.text(value, place, f" {value:.2f}", va="center", color=TEXT, fontsize=9)
    axes.set_xlabel("CPU seconds for 10⁹ bytes")
    return figure


def readers(rows):
    figure, axes = sheet(3.2)
    counts = [int(re.search(r"by (\d+) reader", row.what)[1]) for row in rows]
    for figures, colour, name in [([row.of(row.ours) for row in rows], OURS, "kitfs"), ([row.of(row.theirs) for row in rows], THEIRS, "plain folder")]:
        axes.plot(range(len(rows)), figures, "o-", color=colour, label=name, linewidth=2)
        for place, value in enumerate(figures):
            axes.annotate(f"{value / 1000:,.0f}k", (place, value), textcoords="offset points", xytext=(0, 7), ha="center", color=TEXT, fontsize=9)
    axes.set_xticks(range(len(rows)), counts)
    axes.set_xlabel("readers at once")
    axes.set_ylim(0)
    axes.margins(y=0.15)
    axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value / 1000:,.0f}k" if value else "0"))
    axes.grid(axis="x", visible=False)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    legend(axes)
    return figure


def sheet(height):
    figure, axes = plt.subplots(figsize=(8.5, height))
    axes.tick_params(colors=TEXT, length=0)
    axes.xaxis.label.set_color(TEXT)
    axes.spines["bottom"].set_color(GRID)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def legend(axes):
    axes.legend(frameon=False, labelcolor=TEXT, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def label(row):
    """What a goal is about, short enough to stand beside a bar."""
    text = short(row)
    if row.group in ("cold", "latency", "tls", "layers", "compressed") and row.theirs:
        text = f"cold: {text}"
    if row.theirs and row.group in ("cold", "readers"):
        text += f" / {plain(row.beside)}"
    return text if len(text) < 80 else text[:78] + "…"


def short(row):
    text = plain(row.what).split(", each byte")[0].removeprefix("cold mount and read of ").replace("anonymous memory", "RssAnon")
    return f"{text}, 20 ms away" if row.group == "latency" else text


def plain(text):
    return text.replace("`", "").split(", which")[0]


def tidy(path):
    """Without what is of no use in a browser, and with coordinates as exact as a pixel needs."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r" *<metadata>.*?</metadata>\n", "", text, flags=re.DOTALL)
    text = re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    path.write_text(text, encoding="utf-8")

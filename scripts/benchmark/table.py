"""Rows: what was measured, every round of it, and what the goal says of it."""

import statistics
from dataclasses import asdict, dataclass, field

UNITS = {"s": (1, "s"), "ms": (1e3, "ms"), "MiB": (1 / (1 << 20), "MiB"), "": (1, ""), "reads/s": (1, "/s")}


@dataclass
class Row:
    group: str
    what: str
    ours: list
    beside: str = ""
    theirs: list = field(default_factory=list)
    # Of the ratio where there is something beside it, else of the figure.
    goal: float | None = None
    # What is shown of times; they are kept in seconds, sizes in bytes.
    unit: str = "s"
    # Of how many rounds' figures the best counts: the least of times, the greatest of sizes and rates.
    best: str = "min"
    # Whether a goal is a least one, as for what should grow.
    at_least: bool = False

    def of(self, figures):
        return {"min": min, "max": max, "median": statistics.median}[self.best](figures)

    @property
    def ratio(self):
        return self.of(self.ours) / self.of(self.theirs) if self.theirs else None

    @property
    def median_ratio(self):
        return statistics.median(self.ours) / statistics.median(self.theirs) if self.theirs else None

    @property
    def value(self):
        """What the goal is about."""
        return self.ratio if self.theirs else self.of(self.ours) * UNITS[self.unit][0]

    @property
    def met(self):
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def figure(self, figures):
        if not figures:
            return ""
        factor, unit = UNITS[self.unit]
        show = lambda value: f"{value * factor:,.{2 if value * factor < 10 else 1 if value * factor < 100 else 0}f}"
        best, median = show(self.of(figures)), show(statistics.median(figures))
        return f"{best} {unit}".strip() + (f" ({median})" if median != best else "")

    def cells(self):
        goal = ""
        if self.goal is not None:
            unit = "" if self.theirs else UNITS[self.unit][1]
            goal = f"{'≥' if self.at_least else '≤'} {self.goal:g} {unit}".strip()
        ratio = "" if self.ratio is None else f"{self.ratio:.2f} ({self.median_ratio:.2f})"
        verdict = {None: "", True: "met", False: "**not met**"}[self.met]
        return [self.what, self.beside, goal, self.figure(self.ours), self.figure(self.theirs), ratio, verdict]


class Table:
    HEAD = ["measured", "beside", "goal", "kitfs", "the other", "ratio", ""]

    def __init__(self):
        self.rows = []
        self.group = ""

    def add(self, what, ours, **more):
        row = Row(self.group, what, list(ours), **more)
        self.rows.append(row)
        return row

    def size(self, what, size, goal):
        self.add(what, [size], goal=goal, unit="MiB", best="max")

    def as_json(self):
        return [asdict(row) for row in self.rows]


def markdown(rows):
    lines = [Table.HEAD, ["---"] * len(Table.HEAD), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)

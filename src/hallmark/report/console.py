"""What a finished experiment says on the terminal."""

from collections import defaultdict
from collections.abc import Iterable

from rich.table import Table

from hallmark.report.rows import Row


def verdict_table(rows: Iterable[Row]) -> Table:
    """Verdicts by algorithm, suspect, attack and access, over all downstream models.

    Args:
        rows: Rows of one experiment at one seed.

    Returns:
        A table that says how many of the judged models were detected at the experiment's α, and the range of p.
    """
    rows = list(rows)
    alpha = next((row.value for row in rows if row.metric == "alpha"), None)
    p_values: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in rows:
        if row.metric == "p_value" and row.value is not None:
            attack = "" if row.attack == "none" else f"{row.attack} {row.strength:g} {row.unit}"
            p_values[row.pretrain, row.suspect, attack, row.access].append(row.value)
    table = Table(title=f"Verdicts at α = {alpha:g}" if alpha else "Verdicts")
    for name in ("pretraining", "suspect", "attack", "access"):
        table.add_column(name)
    for name in ("detected", "p"):
        table.add_column(name, justify="right")
    for place, values in p_values.items():
        detected = sum(p <= (alpha or 0) for p in values)
        low, high = min(values), max(values)
        spread = f"{low:.3g}" if low == high else f"{low:.3g} … {high:.3g}"
        table.add_row(*place, f"{detected} of {len(values)}", spread)
    return table

"""Tables of accuracy: every start and how it serves its clients, personalised models, and all paired comparisons."""

from __future__ import annotations

from typing import Any

from fedstart.report.record import Record, Run
from fedstart.report.tables import Column, Table, table
from fedstart.report.words import count, number, probability, signed, three


def fairness(record: Record) -> Table:
    """Accuracy and fairness of every start in every setting."""
    columns = (
        Column("start", "start"),
        Column("algorithm", "algorithm"),
        Column("partition", "partition"),
        Column("n", "n", count),
        Column("mean", "mean", number, "max"),
        Column("low", "95 % from", number),
        Column("high", "to", number),
        Column("worst10", "worst 10 %", number, "max"),
        Column("worst20", "worst 20 %", number, "max"),
        Column("worst30", "worst 30 %", number, "max"),
        Column("variance", "variance", number, "min"),
        Column("variance_squared_mean_deviation", "(mean std)²", number, "min"),
        Column("jain", "Jain", _four, "max"),
        Column("entropy", "entropy", _four, "max"),
        Column("sample_mean", "over examples", number),
    )
    caption = (
        "Accuracy in percent, every client with the same weight; mean over the n runs with its 95 % t-interval. "
        "Worst k % = mean accuracy of the ceil(k n / 100) clients with the lowest accuracy. "
        "Variance in %²: mean over the runs of the variance between clients; (mean std)² = square of the mean "
        "standard deviation, which is what published tables most likely hold. "
    )
    if any(row.get("jain") is not None for row in record.rows):
        caption += (
            "Jain = Jain's index of the client accuracies (1/clients to 1); entropy = Shannon entropy, natural "
            "logarithm, of the accuracies as shares of their sum (ln clients = all alike). "
        )
    if any(row.get("sample_mean") is not None for row in record.rows):
        caption += "Over examples = accuracy over all test examples together. "
    return table(
        record, "summary", caption + "Best values are bold.", columns, record.rows, ("jain", "entropy", "sample_mean")
    )


def contrasts(record: Record) -> Table:
    """All paired comparisons."""
    columns = (
        Column("first", "first"),
        Column("second", "second"),
        Column("algorithm", "algorithm"),
        Column("partition", "partition"),
        Column("n", "pairs", count),
        Column("difference", "difference", signed),
        Column("low", "95 % from", signed),
        Column("high", "to", signed),
        Column("p", "p", _p),
        Column("p_holm", "p (Holm)", _p),
    )
    caption = (
        "First minus second in points of mean accuracy, paired over (task, seed), with the 95 % t-interval; "
        "p of the paired t-test, and after Holm's correction over all pairs of one algorithm and partition."
    )
    return table(record, "contrasts", caption, columns, record.summary.get("contrasts", ()))


def run_scores(record: Record, run: Run) -> Table:
    """Accuracy and fairness of one run."""
    columns = (
        Column("clients", "clients", count),
        Column("mean", "mean", number),
        Column("sample_mean", "over examples", number),
        Column("variance", "variance", number),
        *(Column(f"worst{k}", f"worst {k} %", number) for k in (10, 20, 30)),
        Column("loss", "test loss", three),
        Column("excluded", "without test examples", count),
    )
    caption = (
        "Final weights on the clients' test examples: accuracy in percent, mean over clients, over all examples "
        "together, variance between clients (%²), and mean of the worst clients."
    )
    rows: list[dict[str, Any]] = []
    if run.scores is not None:
        found = run.scores
        keys = ("mean", "sample_mean", "variance", "loss", "excluded")
        worst = {f"worst{k}": found.worst(k) for k in (10, 20, 30)}
        rows = [{"clients": len(found.clients), **{key: getattr(found, key) for key in keys}, **worst}]
    return table(record, "summary", caption, columns, rows)


def personal(record: Record) -> Table:
    """What the global model and the personalised ones score, beside each other; empty without personalised scores."""
    columns = [
        Column("start", "start"),
        Column("algorithm", "algorithm"),
        Column("partition", "partition"),
        Column("mean", "global mean", number, "max"),
        Column("personal_mean", "personal mean", number, "max"),
        Column("personal_low", "95 % from", number),
        Column("personal_high", "to", number),
        Column("gain", "gain", signed, "max"),
    ]
    for key in ("variance", "worst10", "worst20", "worst30"):
        best, title = ("min", key) if key == "variance" else ("max", f"worst {key[-2:]} %")
        columns += [Column(key, f"global {title}", number, best)]
        columns += [Column(f"personal_{key}", f"personal {title}", number, best)]
    rows: list[dict[str, Any]] = []
    for row in record.rows:
        own = row.get("personal")
        if own:
            gain = float(f"{own['mean'] - row['mean']:.10g}")
            rows.append({**row, "gain": gain, **{f"personal_{key}": value for key, value in own.items()}})
    caption = (
        "Global = the final global model, the same for every client; personal = after each client has trained it "
        "further on its own examples; both on the client's own test examples, every client with the same weight. "
        "Means over the runs, with the 95 % t-interval of the personalised mean; gain = personal minus global mean in "
        "points; variance = mean over the runs of the variance between clients (%²). Best values are bold."
    )
    return table(record, "personal", caption, columns, rows)


def _four(value: float) -> str:
    return number(value, 4)


def _p(value: float) -> str:
    return probability(value).removeprefix("p ").removeprefix("= ")

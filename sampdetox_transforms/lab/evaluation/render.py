"""Tables of experiments as Markdown."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from sampdetox_transforms.lab.attacks.recipes import RECIPES, TEN_ATTACKS
from sampdetox_transforms.lab.environment import all_in_words
from sampdetox_transforms.lab.evaluation.experiments import FAINT, VISIBLE, get_experiment
from sampdetox_transforms.lab.evaluation.paper_results import TABLE_3, VISIBILITY, Cell
from sampdetox_transforms.lab.evaluation.report import Report
from sampdetox_transforms.lab.evaluation.rows import RobustnessRow, Row
from sampdetox_transforms.lab.metrics import Share

# Tables


def render_experiment(name: str, report: Report) -> str:
    """The Markdown table of a named experiment's results."""
    table = render_levels(report.rows) if name == "levels" else render(report.rows, get_experiment(name).paper)
    used = sorted({row.environment for row in report.rows})
    environments = [report.environments[i] for i in used]
    return f"{table}\n\n{footnote(report.settings, environments)} Shares in per cent with 95 % intervals (Wilson)."


def render(rows: Sequence[Row], paper: Callable[[Row], Cell | None] = lambda row: None) -> str:
    """A line for each victim and defense, with the paper's numbers beside, and means over victims with a backdoor."""
    with_paper = any(paper(row) for row in rows)
    head = [
        "attack",
        "defense",
        "CA",
        "PA",
        "ASR",
        *(["paper: CA / PA / ASR"] if with_paper else []),
        "n",
        "ms",
        "calls",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in by_attack(rows):
        cells = [_attack(row), row.defense, _share(row.ca), _share(row.pa), _share(row.asr)]
        cells += [_cell(paper(row))] if with_paper else []
        lines.append("| " + " | ".join([*cells, _sizes(row), f"{row.ms_per_image:.1f}", _calls(row)]) + " |")
    for name in dict.fromkeys(row.defense for row in rows):
        group = [row for row in rows if row.defense == name and row.pa and row.asr]
        if len(group) > 1:
            means = [sum(getattr(row, key).value for row in group) / len(group) for key in ("ca", "pa", "asr")]
            cells = [f"mean of {len(group)}", name, *(f"{100 * mean:.1f}" for mean in means)]
            lines.append("| " + " | ".join(cells) + " |" + " |" * (len(head) - len(cells)))
    return "\n".join(lines)


def render_levels(rows: Sequence[Row]) -> str:
    """Table 3: means over the faint attacks for each t1, and over the visible ones for each t2."""
    lines = ["| level | victims | CA | PA | ASR | paper: CA / PA / ASR |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row.defense for row in rows):
        group = FAINT if name.startswith("t1") else VISIBLE
        cells = [row for row in rows if row.defense == name and row.attack in group and row.pa and row.asr]
        if cells:
            means = [sum(getattr(row, key).value for row in cells) / len(cells) for key in ("ca", "pa", "asr")]
            shown = " | ".join(f"{100 * mean:.1f}" for mean in means)
            lines.append(f"| {name} | {len(cells)} | {shown} | {_cell(TABLE_3.get(name))} |")
    return "\n".join(lines)


def render_robustness(rows: Sequence[RobustnessRow]) -> str:
    """Figure 2 in numbers: means and standard deviations over the images of a victim."""
    lines = ["| victim | v, mean ± std | paper: v | eta_r, mean ± std | n |", "|---|---|---|---|---|"]
    for row in rows:
        v, eta = (torch.tensor(values) for values in (row.visibility, row.robustness))
        shown = [f"{x.mean():.3f} ± {x.std(correction=0):.3f}" for x in (v, eta)]
        lines.append(f"| {row.victim} | {shown[0]} | {VISIBILITY.get(row.attack, '')} | {shown[1]} | {len(v)} |")
    return "\n".join(lines)


def by_attack(rows: Iterable[Row]) -> list[Row]:
    """Rows in the order of the paper's tables, victims of one attack together, each in its own order."""
    order = {name: i for i, name in enumerate(["none", *TEN_ATTACKS, *RECIPES, "composite"])}
    return sorted(rows, key=lambda row: (order.get(row.attack, len(order)), row.victim))


def footnote(settings: Mapping[str, Any], environments: Sequence[Mapping[str, str]]) -> str:
    """One line: command, data, seed, hardware and versions."""
    made = all_in_words(environments)
    known = ("command", "n", "seed", "test_images")
    rest = ", ".join(f"{name} {value}" for name, value in settings.items() if name not in known)
    command = f"`{settings['command']}`: " if "command" in settings else ""
    drawn = f"{settings['n']} of {settings['test_images']} test images drawn with seed {settings['seed']}"
    return f"{command}{drawn}{', ' + rest if rest else ''}; {made}."


def _attack(row: Row) -> str:
    shown = row.attack if row.victim in ("", row.attack) else f"{row.attack} ({row.victim})"
    return shown.replace("|", "/")


def _share(share: Share | None) -> str:
    return "" if share is None else f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _cell(cell: Cell | None) -> str:
    return "" if cell is None else " / ".join("-" if value is None else f"{value:.1f}" for value in cell)


def _sizes(row: Row) -> str:
    return f"{row.ca.n}" if row.pa is None else f"{row.ca.n}, {row.pa.n}"


def _calls(row: Row) -> str:
    denoiser = f"{row.denoiser_calls:.3g}"
    return f"{denoiser} + {row.classifier_calls:.4g} of the classifier" if row.classifier_calls else denoiser

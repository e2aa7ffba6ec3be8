"""Victims x defenses -> CA, PA, ASR, time and network calls, one JSON file, from which the tables are made.

Any callable from images to images is a defense, any callable from images to logits a model. An interrupted run goes
on at the first row that its file lacks.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Subset

from sampdetox_transforms import environment
from sampdetox_transforms.attacks.poisoning import TriggeredDataset, read_labels
from sampdetox_transforms.checkpoints import Denoiser, write_atomically
from sampdetox_transforms.classifiers import predict
from sampdetox_transforms.metrics import (
    Share,
    accuracy,
    attack_success,
    predicted,
    robustness,
    visibility,
    wilson,
)
from sampdetox_transforms.victims import Victim, materialise

Images = Float[Tensor, "n c h w"]
Model = Callable[[Images], Tensor]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A defense, as a column of a table.

    Attributes:
        name: what the table calls it.
        build: a function of the victim's model, which returns a callable of images in [0, 1]. Most ignore the model.
        settings: what it was built with, to be stored with its numbers.
        n: at most so many images, for slow ones; None for all.
        access: what it needs of the model: "none", "hard labels" or "class scores".
    """

    name: str
    build: Callable[[Model], Callable[[Images], Images]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    n: int | None = None
    access: str = "none"


NO_DEFENSE = Column(name="none", build=lambda model: lambda images: images)


@dataclass(frozen=True)
class Row:
    """One cell of a table: a victim behind a defense.

    Attributes:
        ca, pa, asr: with intervals and n; pa and asr are None for a classifier without a backdoor.
        ms_per_image: time of the defense alone, clean and triggered images together.
        denoiser_calls, classifier_calls: how often an image went through each network within the defense, as a mean;
            for the denoiser also apart, of clean and of triggered images.
        environment: index into the file's environments.
    """

    victim: str
    attack: str
    mode: str
    target_label: int | None
    classifier: str
    robust_noise: float
    defense: str
    settings: Mapping[str, Any]
    access: str
    ca: Share
    pa: Share | None
    asr: Share | None
    ms_per_image: float
    denoiser_calls: float
    denoiser_calls_clean: float
    denoiser_calls_triggered: float | None
    classifier_calls: float
    environment: int = 0

    @property
    def key(self) -> tuple[str, str]:
        return self.victim, self.defense


def evaluate(
    victims: Sequence[Victim],
    defenses: Sequence[Column],
    dataset: Any,
    *,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    out: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[str, str, int, int], None] = lambda victim, defense, done, total: None,
) -> "Report":
    """Measure every defense on every victim, on the same test images.

    CA is taken on ``n`` images of the data set, drawn with ``seed``; PA and ASR on those of them that are not of the
    attacker's class, with the trigger. Defenses that draw random numbers should be seeded for results that hold.

    Args:
        dataset: test images with labels, such as ``victims.image_folder(folder, 32)``.
        n: None for all images.
        batch_size: how many images a defense gets at once.
        out: a JSON file that gains each row as it is measured. Rows that it has already are not measured again.
        about: further settings to store in it, such as the data's name and the command.
        progress: called with the names of victim and defense, images done, and images in all, in this row.

    Returns:
        all rows with settings and environments; those of the file first.

    Raises:
        ValueError: two victims or defenses of one name; a file of another run; a model in training mode, or with
            another number of classes; a defense that changes the images' shape or leaves [0, 1].
        OSError: a file that cannot be written, before any work.
    """
    for what, names in (("victims", [v.name for v in victims]), ("defenses", [d.name for d in defenses])):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not names:
            raise ValueError(f"{what} must have different names, and be there, got {twice or 'none'}. Name each.")
    training = [v.name for v in victims if isinstance(v.model, nn.Module) and v.model.training]
    if training:
        raise ValueError(f"models must be in eval mode, got training mode in {training}. Call model.eval().")
    labels = read_labels(dataset)
    if n is not None and not 1 <= n <= len(labels):
        raise ValueError(f"n must be in [1, {len(labels)}], the number of test images, got {n}. Leave it out for all.")
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:n]
    report = Report(out, {"n": len(chosen), "seed": seed, "test_images": len(labels), **(about or {})}, device)
    for victim in victims:
        todo = [defense for defense in defenses if (victim.name, defense.name) not in report.done]
        if todo:
            data = CleanAndTriggered.of(victim, dataset, chosen, device)
            for defense in todo:
                report.add(measure_row(victim, defense, data, batch_size, device, progress))
    return report


@dataclass(frozen=True)
class CleanAndTriggered:
    """The test images of one victim; ``triggered`` is None for a classifier without a backdoor."""

    clean: Images
    labels: Int[Tensor, " n"]
    triggered: Images | None = None
    targets: Int[Tensor, " m"] | None = None
    attacker_labels: Int[Tensor, " m"] | None = None
    second_targets: Int[Tensor, " m"] | None = None  # of the composite attack, whose images show two classes

    @classmethod
    def of(cls, victim: Victim, dataset: Any, chosen: Tensor, device: str | torch.device) -> "CleanAndTriggered":
        part = Subset(dataset, chosen.tolist())
        images, labels = materialise(part)
        if victim.attack is None and victim.mode != "composite":
            return cls(images.to(device), labels)
        # The composite attack joins images of two classes, of which a small part of the data may have none.
        source = dataset if victim.mode == "composite" else part
        triggered = victim.triggered(source)
        wrong, targets = triggered.materialise()
        keep = slice(0, len(chosen))
        second = getattr(triggered, "second_targets", None)
        return cls(
            images.to(device),
            labels,
            wrong[keep].to(device),
            targets[keep],
            triggered.attacker_labels[keep],
            None if second is None else second[keep],
        )


def measure_row(
    victim: Victim,
    defense: Column,
    data: CleanAndTriggered,
    batch_size: int,
    device: str | torch.device,
    progress: Callable[[str, str, int, int], None],
) -> Row:
    """One cell of the table."""
    model = Counted(victim.model)
    apply = defense.build(model)
    limit = defense.n
    clean, labels = data.clean[:limit], data.labels[:limit]
    triggered = None if data.triggered is None else data.triggered[:limit]
    total = len(clean) + (0 if triggered is None else len(triggered))

    def run(images: Images, first: int) -> tuple[Tensor, float, float]:
        """Predictions behind the defense, its seconds, and its denoiser's calls."""
        results, begin = [], time.perf_counter()
        with counted_denoiser(apply) as calls:
            for chunk in images.split(batch_size):
                results.append(apply(chunk.clone()))
                check_result(defense.name, chunk, results[-1])
                progress(victim.name, defense.name, first + sum(map(len, results)), total)
            if images.device.type == "cuda":
                torch.cuda.synchronize(images.device)
        seconds = time.perf_counter() - begin
        outputs = predict(victim.model, torch.cat(results))
        return predicted(outputs, victim.num_classes).cpu(), seconds, calls[0]

    classes, seconds, calls = run(clean, 0)
    ca = accuracy(classes, labels, victim.num_classes)
    pa = asr = calls_triggered = None
    seconds_all, calls_all = seconds, calls
    if triggered is not None:
        assert data.targets is not None and data.attacker_labels is not None
        targets, wanted = data.targets[:limit], data.attacker_labels[:limit]
        classes, seconds, calls_triggered = run(triggered, len(clean))
        seconds_all, calls_all = seconds_all + seconds, calls_all + calls_triggered
        asr = attack_success(classes, targets, wanted, victim.num_classes)
        pa = accuracy(classes, targets, victim.num_classes)
        if data.second_targets is not None:
            right = (classes == targets) | (classes == data.second_targets[:limit])
            pa = wilson(int(right.sum()), len(right))
    return Row(
        victim=victim.name,
        attack=victim.about.get("attack", victim.name),
        mode=victim.mode,
        target_label=victim.target_label,
        classifier=victim.about.get("classifier", ""),
        robust_noise=victim.about.get("robust_noise", 0.0),
        defense=defense.name,
        settings=dict(defense.settings),
        access=defense.access,
        ca=ca,
        pa=pa,
        asr=asr,
        ms_per_image=seconds_all / total * 1000,
        denoiser_calls=calls_all / total,
        denoiser_calls_clean=calls / len(clean),
        denoiser_calls_triggered=None if triggered is None else (calls_triggered or 0) / len(triggered),
        classifier_calls=model.images / total,
    )


class Counted(nn.Module):
    """A model that counts the images it is asked about."""

    def __init__(self, model: Model):
        super().__init__()
        self.model, self.images = model, 0
        self.training = False  # as its model, which evaluate checks

    def forward(self, images: Images) -> Tensor:
        self.images += len(images)
        return self.model(images)


@contextmanager
def counted_denoiser(defense: Any) -> Iterator[list[int]]:
    """Count the images that go through the denoisers within a defense that is a module, as the list's one number."""
    calls = [0]

    def count(module: nn.Module, inputs: tuple) -> None:
        calls[0] += len(inputs[0])

    found = [m for m in defense.modules() if isinstance(m, Denoiser)] if isinstance(defense, nn.Module) else []
    hooks = [module.register_forward_pre_hook(count) for module in found]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def check_result(name: str, images: Tensor, result: Any) -> None:
    """Raise unless a defense returned images of the shape that it was given, in [0, 1]."""
    if not isinstance(result, Tensor):
        raise TypeError(f"a defense must return a tensor, got {type(result).__name__} from {name!r}. Return images.")
    if result.shape != images.shape:
        raise ValueError(
            f"a defense must keep the images' shape {tuple(images.shape)}, got {tuple(result.shape)} from {name!r}. "
            "Resize the result."
        )
    low, high = float(result.min()), float(result.max())
    if not (low >= -1e-5 and high <= 1 + 1e-5):  # NaN fails both
        raise ValueError(
            f"a defense must return images in [0, 1], got values in [{low:.4g}, {high:.4g}] from {name!r}. "
            "Undo a normalisation; clamp."
        )


@dataclass(frozen=True)
class RobustnessRow:
    """The (v, eta_r) of a victim's triggered images, one of each an image: the dots of the paper's Figure 2."""

    victim: str
    attack: str
    visibility: list[float]
    robustness: list[float]
    asr: float


def evaluate_robustness(
    victims: Sequence[Victim],
    dataset: Any,
    *,
    n: int = 50,
    draws: int = 5,
    steps: int = 8,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[str, str, int, int], None] = lambda victim, what, done, total: None,
) -> list[RobustnessRow]:
    """Visibility and robustness (section 3.1) of ``n`` triggered test images of each victim.

    eta_r is the mean over ``draws`` noise draws of the bisection that ``metrics.robustness`` describes, in ``steps``
    halvings, with images in [-1, 1].

    Raises:
        ValueError: a victim without a backdoor; n out of range.
    """
    labels = read_labels(dataset)
    if not 1 <= n <= len(labels):
        raise ValueError(f"n must be in [1, {len(labels)}], the number of test images, got {n}. Lower it.")
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:n]
    rows = []
    for i, victim in enumerate(victims):
        if victim.mode == "composite" or victim.attack is None:
            raise ValueError(
                f"robustness needs a trigger on one image, got {victim.name!r} of another kind. Leave it out."
            )
        part = Subset(dataset, chosen.tolist())
        triggered = victim.triggered(part)
        assert isinstance(triggered, TriggeredDataset)
        clean = materialise(part)[0][triggered.indices]
        images = triggered.materialise()[0]
        model = victim.model
        eta = robustness(
            lambda x, model=model: model((x + 1) / 2),
            (images * 2 - 1).to(device),
            triggered.attacker_labels.to(device),
            draws=draws,
            steps=steps,
            generator=torch.Generator().manual_seed(seed),
        )
        hits = predicted(predict(model, images.to(device))).cpu() == triggered.attacker_labels
        rows.append(
            RobustnessRow(
                victim.name,
                victim.about.get("attack", victim.name),
                [round(v, 5) for v in visibility(clean, images).tolist()],
                [round(v, 5) for v in eta.mean(dim=1).tolist()],
                float(hits.float().mean()),
            )
        )
        progress(victim.name, "robustness", i + 1, len(victims))
    return rows


class Report:
    """Rows of results, and the file that holds them: whole after every row, or not changed.

    Attributes:
        settings: what all rows share: n, seed, and what the caller adds.
        environments: hardware and versions that rows were measured on; ``Row.environment`` is an index into them.
        rows: the rows.
    """

    def __init__(self, out: str | Path | None, settings: Mapping[str, Any], device: str | torch.device = "cpu"):
        self.out = None if out is None else Path(out)
        self.settings, self.rows, self.environments = dict(settings), [], []
        if self.out is not None and self.out.exists():
            self.settings, self.environments, self.rows = read_report(self.out)
            kept = {name: value for name, value in self.settings.items() if name != "command"}
            asked = json.loads(json.dumps({name: value for name, value in settings.items() if name != "command"}))
            if kept != asked:
                different = sorted(name for name in {*kept, *asked} if kept.get(name) != asked.get(name))
                raise ValueError(
                    f"a run goes on only with the settings that {self.out} was begun with, got another "
                    f"{', '.join(different)}. Repeat them, or name another file."
                )
            self.settings.update(settings)  # the last command is the one that makes all rows
        current = environment.describe(device)
        if current not in self.environments:
            self.environments.append(current)
        self.current = self.environments.index(current)
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.write()

    @property
    def done(self) -> set[tuple[str, str]]:
        return {row.key for row in self.rows}

    def add(self, row: Row) -> None:
        self.rows.append(Row(**{**vars(row), "environment": self.current}))
        self.write()

    def write(self) -> None:
        if self.out is None:
            return
        document = {
            "settings": self.settings,
            "environments": self.environments,
            "rows": [asdict(row) for row in self.rows],
        }
        text = json.dumps(document, indent=1) + "\n"
        write_atomically(self.out, lambda path: path.write_text(text))


def read_report(path: str | Path) -> tuple[dict[str, Any], list[dict[str, str]], list[Row]]:
    """Settings, environments and rows of a file that ``evaluate`` wrote.

    Raises:
        ValueError: a file of another kind.
        OSError: no such file.
    """
    try:
        document = json.loads(Path(path).read_text())
        rows = [
            Row(**{**row, **{name: row[name] and Share(**row[name]) for name in ("ca", "pa", "asr")}})
            for row in document["rows"]
        ]
        return document["settings"], document["environments"], rows
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"results must be a file that evaluate wrote, got {path}: {error}. Name another.") from error

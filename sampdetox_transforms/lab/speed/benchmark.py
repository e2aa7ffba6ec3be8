"""How fast purification is, what takes its time, and beside what: the authors' loop, the classifier behind it.

The method itself holds no clocks: the network, the map and the noise are wrapped where they are handed over, in runs
of their own. On CUDA every clock waits for the device.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict

from torch import Tensor

from sampdetox_transforms._common import check_choice
from sampdetox_transforms.lab import environment
from sampdetox_transforms.lab.speed.clocks import clock
from sampdetox_transforms.lab.speed.measure import (
    MATMUL_SIZE,
    batch_of,
    count_flop,
    matmul_rate,
    measure_batch,
    measure_defended,
    measure_import,
    measure_parts,
    with_batch_size,
)
from sampdetox_transforms.lab.speed.naive import measure_naive
from sampdetox_transforms.lab.speed.table import Benchmark
from sampdetox_transforms.lab.victims.classifiers import CLASSIFIERS, build_classifier
from sampdetox_transforms.transforms.transform import SampDetox


def benchmark(
    detox: SampDetox,
    images: Tensor,
    *,
    batch_sizes: Sequence[int] = (1, 8, 64),
    repeats: int = 5,
    naive_images: int = 1,
    naive_every: int = 10,
    classifier: str = "preact-resnet18",
    classifier_batch_size: int = 64,
    num_classes: int = 43,
    progress: Callable[[str], None] = lambda step: None,
) -> Benchmark:
    """Measure one ``SampDetox`` on one machine: medians of ``repeats`` runs, after one for warm-up.

    Args:
        detox: with the network on the device, and in the dtype, to measure.
        images: (n, c, h, w) in [0, 1]; they are repeated where a batch is larger.
        naive_images: how many to purify with the authors' loop; 0 leaves it out.
        naive_every: which of its levels to walk; 1 walks all, 10 every tenth, the others being extrapolated.
        classifier: a name of ``classifiers.CLASSIFIERS``, with random weights.
        progress: called with what is measured next.

    Raises:
        ValueError: a setting out of range; images that ``detox`` refuses.
    """
    sizes = list(batch_sizes)
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError(f"batch sizes must be whole numbers of 1 or more, got {sizes}. Give 1,8,64, say.")
    for name, value, least in (
        ("repeats", repeats, 1),
        ("naive_images", naive_images, 0),
        ("naive_every", naive_every, 1),
        ("classifier_batch_size", classifier_batch_size, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}. Leave it out for the usual.")
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise ValueError(f"images must be floats (n, c, h, w), n > 0, got {tuple(images.shape)}. Stack them.")
    check_choice("classifier", classifier, tuple(CLASSIFIERS))
    device = detox.denoiser.device or images.device
    images = images.to(device)

    progress("import")
    import_seconds = measure_import(min(repeats, 3))
    progress("matrix product")
    matmul_size = MATMUL_SIZE.get(device.type, 1024)
    rate = matmul_rate(device, detox.denoiser.dtype, matmul_size, repeats)
    flop = count_flop(detox, images[:1])
    started = clock(device)
    with_batch_size(detox, sizes[0])(batch_of(images, sizes[0]))
    first_call = clock(device) - started

    batches = []
    for size in sizes:
        progress(f"batch size {size}")
        batches.append(measure_batch(detox, batch_of(images, size), rate, flop, repeats))
    largest = max(sizes)
    progress("parts")
    parts = measure_parts(with_batch_size(detox, largest), batch_of(images, largest), repeats)
    progress(f"classifier {classifier}")
    network = build_classifier(classifier, num_classes, images.shape[1])
    defended = measure_defended(detox, network, batch_of(images, classifier_batch_size), classifier, repeats)
    naive = None
    if naive_images:
        progress("authors' loop")
        fastest = max(batches, key=lambda batch: batch.images_per_second)
        naive = measure_naive(detox, batch_of(images, naive_images), fastest, every=naive_every)
    settings = {
        "weights": detox.denoiser.source,
        **asdict(detox.settings),
        "dtype": str(detox.denoiser.dtype).removeprefix("torch."),
        "image_shape": list(images.shape[1:]),
        "repeats": repeats,
        "naive_every": naive_every,
    }
    return Benchmark(
        settings=settings,
        environment=environment.describe(device),
        matmul_size=matmul_size,
        matmul_flop_per_second=rate,
        flop_per_call=flop,
        first_call_seconds=first_call,
        import_seconds=import_seconds,
        batches=batches,
        parts=parts,
        parts_batch_size=largest,
        naive=naive,
        defended=defended,
    )

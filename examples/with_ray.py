"""A folder of pictures through workers of Ray Data, as numbers; ``sampdetox purify IN OUT --ray`` writes files.

python examples/with_ray.py photos/
"""

import sys

import ray

from sampdetox_transforms import DetoxBatches


def purified(folder: str, workers: int = 2, **settings) -> "ray.data.Dataset":
    """Rows of ``image`` (h, w, 3), ``path`` and ``p_value``."""
    photos = ray.data.read_images(folder, mode="RGB", include_paths=True)
    return photos.map_batches(
        DetoxBatches,
        fn_constructor_kwargs={"p_value": "p_value", **settings},
        batch_size=64,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,  # with cards: num_gpus=1
    )


if __name__ == "__main__":
    for row in purified(sys.argv[1], weights="bundled", seed=0).iter_rows():
        print(row["path"], row["image"].shape, f"{row['p_value']:.3f}")

"""The scripts examples/with_*.py, which users copy: with a network of a few parameters, where their library is."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from samples import images
from torch import nn

from sampdetox_transforms import SampDetox


@pytest.fixture
def detox(tiny) -> SampDetox:
    """Purifies with a tiny network; an image's result depends on the image alone."""
    return SampDetox(tiny, seed=0, device="cpu")


def picture(*size: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def linear(size: int, classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, classes)).eval()


def test_timm(detox):
    timm = pytest.importorskip("timm")
    from torchvision.transforms import v2
    from with_timm import transform_of

    model = timm.create_model("resnet18", num_classes=3)
    own = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    photo = picture(60, 80)
    crop = v2.Compose(own.transforms[:-1])(photo)
    assert crop.amin() >= 0 and crop.amax() <= 1
    found = transform_of(model, detox)(photo)
    assert torch.equal(found, own.transforms[-1](detox(crop))) and not torch.equal(found, own(photo))


def test_lightning(detox, tmp_path):
    lightning = pytest.importorskip("lightning")
    from with_lightning import PurifiedClassifier

    x, labels = images(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1])
    classifier = linear(8)
    module = PurifiedClassifier(classifier, detox, mean=[0.5], std=[0.25])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset((x - 0.5) / 0.25, labels), batch_size=4)
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    expected = classifier((detox(x) - 0.5) / 0.25).argmax(1)
    parts = trainer.predict(module, loader)
    assert torch.equal(torch.cat([part["label"] for part in parts]), expected)
    p_value = torch.cat([part["p_value"] for part in parts])
    assert torch.allclose(p_value, detox.explain(x).found.p_value, atol=1e-3)
    (result,) = trainer.test(module, loader, verbose=False)
    assert result["accuracy"] == pytest.approx((expected == labels).float().mean().item())


def test_hugging_face(detox, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("transformers")
    from with_hugging_face import purify_dataset, tiny_pipeline

    pictures = [picture(9, 8), picture(7, 9, seed=1)]
    columns = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1]}, features=columns)
    rows = list(purify_dataset(data, detox))
    for row, before, label in zip(rows, pictures, (0, 1), strict=True):
        assert row["label"] == label and np.array_equal(np.asarray(row["image"]), np.asarray(detox(before)))

    pipe = tiny_pipeline(detox)
    photo = picture(32, 32)
    photo.save(tmp_path / "photo.png")
    found = pipe(str(tmp_path / "photo.png"))
    processed = pipe.image_processor(detox(photo), return_tensors="pt")
    with torch.no_grad():
        expected = pipe.model(**processed).logits.softmax(1)[0]
    assert sorted(answer["score"] for answer in found) == pytest.approx(sorted(expected.tolist()), abs=1e-5)


def test_art(detox):
    pytest.importorskip("art")
    from with_art import defended

    model = linear(8)
    classifier = defended(model, detox, size=8, classes=4)
    x = images(5, 3, 8, 8)
    with torch.no_grad():
        assert np.allclose(classifier.predict(x.numpy()), model(detox(x)), atol=1e-5)
        assert not np.allclose(classifier.predict(x.numpy()), model(x), atol=1e-3)
    clean = detox(x).requires_grad_()
    nn.functional.cross_entropy(model(clean), torch.zeros(5, dtype=torch.long)).backward()
    gradient = classifier.loss_gradient(x.numpy(), np.eye(4)[[0] * 5])
    norms = gradient.reshape(5, -1), clean.grad.reshape(5, -1).numpy()
    assert np.allclose(*(g / np.linalg.norm(g, axis=1, keepdims=True) for g in norms), atol=1e-4)  # the identity's


def test_art_takes_what_is_a_sampdetox():
    pytest.importorskip("art")
    from sampdetox_transforms.integrations.art import DetoxPreprocessor

    with pytest.raises(TypeError, match="detox must be a SampDetox, got str"):
        DetoxPreprocessor("bundled")


def test_albumentations(detox):
    A = pytest.importorskip("albumentations")
    from with_albumentations import pipeline

    from sampdetox_transforms.integrations.albumentations import Purify

    photo = np.asarray(picture(10, 12))
    mask = np.arange(120, dtype=np.uint8).reshape(10, 12)
    found = A.Compose([Purify(detox)])(image=photo, mask=mask)
    assert found["image"].dtype == np.uint8 and np.array_equal(found["mask"], mask)
    assert np.array_equal(found["image"], np.asarray(detox(Image.fromarray(photo))))
    assert pipeline(detox, 8)(image=photo)["image"].shape == (8, 8, 3)
    assert np.array_equal(A.Compose([Purify(detox, p=0)])(image=photo)["image"], photo)
    with pytest.raises(NotImplementedError, match="cannot be saved"):
        A.to_dict(A.Compose([Purify(detox)]))


def test_kornia(detox):
    pytest.importorskip("kornia")
    from with_kornia import sequence

    x = images(2, 3, 8, 8)
    assert torch.allclose(sequence(detox, 8)(x), (detox(x) - 0.5) / 0.5, atol=1e-5)


def test_fastapi(detox, monkeypatch):
    pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient", exc_type=(ImportError, RuntimeError))
    import with_fastapi

    asked = []

    def ask(png: bytes) -> dict:
        asked.append(np.asarray(Image.open(io.BytesIO(png))))
        return {"label": "stop"}

    client = testclient.TestClient(with_fastapi.make_app(detox, ask))
    photo, file = picture(12, 10), io.BytesIO()
    photo.save(file, "PNG")
    answer = client.post("/classify", content=file.getvalue())
    assert answer.status_code == 200 and answer.json()["answer"] == {"label": "stop"}
    p_value = detox.explain(photo).found.p_value.item()
    assert answer.json()["p_value"] == pytest.approx(p_value, abs=1e-6)
    assert np.array_equal(asked[0], np.asarray(detox(photo)))

    assert client.post("/classify", content=b"no picture").status_code == 400
    assert client.post("/classify", content=file.getvalue()[:100]).status_code == 400
    monkeypatch.setattr(with_fastapi, "MAX_PIXELS", 119)
    assert client.post("/classify", content=file.getvalue()).status_code == 413
    monkeypatch.setattr(with_fastapi, "MAX_BYTES", 100)
    assert client.post("/classify", content=file.getvalue()).status_code == 413
    assert len(asked) == 1


def test_fastapi_asks_upstream(monkeypatch):
    pytest.importorskip("fastapi")
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    import with_fastapi

    class Upstream(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"bytes": len(body), "type": self.headers["Content-Type"]}).encode())

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Upstream) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setenv("UPSTREAM", f"http://127.0.0.1:{server.server_port}/predict")
        assert with_fastapi.ask_upstream(b"12345") == {"bytes": 5, "type": "image/png"}
        thread.join()


@pytest.mark.slow
def test_ray(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    from with_ray import purified

    (tmp_path / "in").mkdir()
    for i in range(6):
        picture(9, 8 + i % 2, seed=i).save(tmp_path / f"in/{i}.png")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        rows = purified(str(tmp_path / "in"), weights=str(tiny), seed=0, dtype=torch.float32).take_all()
    finally:
        ray.shutdown()
    detox = SampDetox(tiny, seed=0, device="cpu", dtype=torch.float32)
    assert len(rows) == 6
    for row in rows:
        details = detox.explain(Image.open(row["path"]))
        difference = np.asarray(details.image).astype(int) - row["image"]
        assert np.abs(difference).max() <= 1 and abs(row["p_value"] - details.found.p_value.item()) < 1e-3

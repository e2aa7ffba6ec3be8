"""Where a transform may not run: forked workers with CUDA, and under tracing, export, vmap and whole compilation."""

import multiprocessing

import numpy as np
import pytest
import torch
from contract import HEIGHT, WIDTH, pixels
from torch import nn
from torch.utils.data import DataLoader
from workers import GIVE_UP, SameImage

from sampdetox_transforms import Denoiser, DetoxWrapper, SampDetox
from sampdetox_transforms.transforms import checks
from sampdetox_transforms.transforms.checks import as_whole, check_batch_size, check_seed

FORK = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")


@pytest.fixture
def detox(tiny) -> SampDetox:
    return SampDetox(tiny, t2=40, seed=0)


@pytest.fixture
def pretend_cuda(monkeypatch):
    monkeypatch.setattr(Denoiser, "device", property(lambda self: torch.device("cuda")))


@FORK
@pytest.mark.parametrize("context", ["fork", None])
def test_cuda_in_a_forked_worker_is_refused(detox, pretend_cuda, context):
    """``None`` is how nearly everyone writes it: the loader forks because the system does so by default."""
    if context is None and multiprocessing.get_start_method() != "fork":
        pytest.skip("this system does not fork by default")

    def message(image):
        try:
            return f"no refusal, but {detox(image)}"
        except RuntimeError as error:
            return str(error)

    loader = DataLoader(
        SameImage(message, pixels(3, HEIGHT, WIDTH), 1), num_workers=1, multiprocessing_context=context, timeout=GIVE_UP
    )
    [[text]] = loader
    for part in ("forked DataLoader worker", "DetoxWrapper", "multiprocessing_context='spawn'", "device='cpu'"):
        assert part in text


def test_cuda_is_refused_in_forked_workers_only(detox, pretend_cuda, monkeypatch):
    process = multiprocessing.current_process()
    monkeypatch.setattr(process, "_start_method", "fork", raising=False)
    detox.check_inputs([pixels(3, 4, 4)])
    monkeypatch.setattr(checks, "get_worker_info", lambda: object())
    with pytest.raises(RuntimeError, match="forked DataLoader worker"):
        detox.check_inputs([pixels(3, 4, 4)])
    monkeypatch.setattr(process, "_start_method", "spawn", raising=False)
    detox.check_inputs([pixels(3, 4, 4)])


# Programs that are recorded once: what is found in one image would be built into them


def by_the_newer_exporter(module, x):
    pytest.importorskip("onnxscript")
    return torch.onnx.export(module, (x,), dynamo=True, verbose=False)


TRACERS = {
    "torch.jit.trace": lambda module, x: torch.jit.trace(module, x),
    "torch.jit.script": lambda module, x: torch.jit.script(nn.Sequential(module)),
    "torch.export": lambda module, x: torch.export.export(module, (x,)),
    "torch.export without strictness": lambda module, x: torch.export.export(module, (x,), strict=False),
    "torch.export, strict": lambda module, x: torch.export.export(module, (x,), strict=True),
    "torch.onnx": lambda module, x: torch.onnx.export(module, (x,), "/dev/null", dynamo=False),
    "torch.onnx, by torch.export": by_the_newer_exporter,
    "torch.func.vmap": lambda module, x: torch.func.vmap(module)(x),
    "torch.func.vmap of a gradient": lambda module, x: torch.func.vmap(torch.func.grad(lambda y: module(y).sum()))(x),
    "torch.compile(fullgraph=True)": lambda module, x: torch.compile(module, fullgraph=True, backend="eager")(x),
}


def messages(error: BaseException | None) -> str:
    """What an error says, and all that it was raised from."""
    return "" if error is None else f"{error}\n{messages(error.__cause__)}\n{messages(error.__context__)}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("tracer", "wrapped", "preset"),
    [*((tracer, True, "restore") for tracer in TRACERS), *((tracer, False, "ddim") for tracer in TRACERS)],
)
def test_it_is_refused_where_it_would_be_recorded(tiny, tracer, wrapped, preset):
    detox = SampDetox(tiny, preset=preset, t2=40, seed=0)
    module = DetoxWrapper(nn.Flatten(), detox) if wrapped else detox
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"(?s).") as caught:  # torch wraps what is raised while it traces
        TRACERS[tracer](module, pixels(2, 3, HEIGHT, WIDTH))
    told = messages(caught.value)
    assert "cannot be traced, exported or mapped as a whole" in told
    assert "detox.denoiser, detox.restorer" in told and "keep the call of SampDetox in Python" in told


@pytest.mark.slow  # the tracer takes minutes where shapes are checked
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrapped", [False, True])
def test_compiled_with_breaks_it_gives_what_it_gives(detox, wrapped):
    module = DetoxWrapper(nn.Flatten(), detox) if wrapped else detox
    torch.compiler.reset()
    clean = pixels(2, 3, HEIGHT, WIDTH)
    patched = clean.clone()
    patched[..., 2:5, 4:7] = 1
    compiled = torch.compile(module, backend="eager")
    for images in (clean, patched):
        torch.testing.assert_close(compiled(images), module(images), rtol=0, atol=1e-4)


def test_whole_numbers_of_every_kind():
    assert [as_whole(value) for value in (3, np.int64(3), np.uint8(3))] == [3, 3, 3]
    assert [as_whole(value) for value in (True, 3.0, "3", None, torch.tensor(3))] == [None] * 5
    assert check_batch_size(None) == 64 and check_batch_size(np.int32(2)) == 2
    assert type(check_seed(np.int64(-5))) is int and check_seed(None) is None

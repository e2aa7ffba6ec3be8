"""What networks compute in: the one place that decides precision and memory format."""

import torch
from torch import nn


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions run in hardware here."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor or card computes in it, float32 elsewhere."""
    return torch.bfloat16 if has_fast_bf16(device) else torch.float32


def set_precision(network: nn.Module, dtype: torch.dtype | None) -> None:
    """Convert the parameters in place, None leaves them; convolution weights are kept in channels_last order."""
    network.to(dtype=dtype)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

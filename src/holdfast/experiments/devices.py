"""GPUs by name, as their makers' data sheets have them: what an estimate of memory and time is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from holdfast.errors import ConfigError, did_you_mean

GB = 10**9
TERA = 10**12


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        label: its name for people.
        memory: bytes, the data sheet's GB taken as 10^9: somewhat less than there is, which leaves room for the CUDA
            context and for what the allocator cannot use.
        bf16: matrix products, dense, bfloat16 with float32 sums: operations a second at most.
        fp32: the same in float32 (not TF32).
    """

    label: str
    memory: int
    bf16: float
    fp32: float


# Data sheets give tensor-core rates "with sparsity"; these are the dense ones, half of that.
DEVICES: Mapping[str, Device] = {
    # NVIDIA H100 Tensor Core GPU data sheet (SXM): 1,979 TFLOPS with sparsity, 67 in float32
    "h100": Device("NVIDIA H100 80 GB", 80 * GB, 989 * TERA, 67 * TERA),
    # NVIDIA H200 Tensor Core GPU data sheet (SXM): the H100's chip
    "h200": Device("NVIDIA H200 141 GB", 141 * GB, 989 * TERA, 67 * TERA),
    # NVIDIA A100 Tensor Core GPU data sheet: 312 dense, 19.5 in float32
    "a100": Device("NVIDIA A100 80 GB", 80 * GB, 312 * TERA, 19.5 * TERA),
    "a100-40gb": Device("NVIDIA A100 40 GB", 40 * GB, 312 * TERA, 19.5 * TERA),
    # NVIDIA L40S data sheet: 362 dense, 91.6 in float32
    "l40s": Device("NVIDIA L40S 48 GB", 48 * GB, 362 * TERA, 91.6 * TERA),
    # NVIDIA L4 data sheet: 242 with sparsity, 30.3 in float32
    "l4": Device("NVIDIA L4 24 GB", 24 * GB, 121 * TERA, 30.3 * TERA),
    # NVIDIA Ada GPU architecture whitepaper, RTX 4090: 165.2 dense with float32 sums, 82.6 in float32
    "4090": Device("NVIDIA GeForce RTX 4090 24 GB", 24 * GB, 165.2 * TERA, 82.6 * TERA),
    # NVIDIA Ampere GA102 whitepaper, RTX 3090: 71 dense with float32 sums, 35.6 in float32
    "3090": Device("NVIDIA GeForce RTX 3090 24 GB", 24 * GB, 71 * TERA, 35.6 * TERA),
}


def get_device(name: str) -> Device:
    """The GPU called `name`, in any case.

    Raises:
        ConfigError: none is; names the nearest.
    """
    found = DEVICES.get(name.lower())
    if found is None:
        raise ConfigError(f"--gpu: no GPU called '{name}' is known here{did_you_mean(name.lower(), DEVICES)}")
    return found

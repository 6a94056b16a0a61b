"""What decides how numbers are rounded, beside the code: fixed here, or part of the keys."""

import ctypes
import os
from typing import Any

import torch

from fedcats.errors import UserError

# Each chooses among kernels that sum in another order or with another precision: MKL's and
# oneDNN's developer guides ("conditional numerical reproducibility", "CPU dispatcher control",
# "floating-point math mode"), PyTorch's ATen/Context.cpp and native/mkldnn/Matmul.cpp.
_CPU = (
    *("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE", "MKL_THREADING_LAYER"),
    *("MKL_DYNAMIC", "MKL_DOMAIN_NUM_THREADS", "MKL_NUM_STRIPES", "MKL_DISABLE_FAST_MM"),
    *("ONEDNN_MAX_CPU_ISA", "ONEDNN_CPU_ISA_HINTS", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("DNNL_MAX_CPU_ISA", "DNNL_CPU_ISA_HINTS", "DNNL_DEFAULT_FPMATH_MODE"),
    *("TORCH_MKLDNN_MATMUL_MIN_DIM", "TORCH_MKLDNN_MATMUL_MIN_SIZE", "USE_EIGEN_FOR_BLAS"),
    *("OPENBLAS_CORETYPE", "KMP_DETERMINISTIC_REDUCTION"),
)
_GPU = (
    *("NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE"),
    *("TORCH_BLAS_PREFER_CUBLASLT", "TORCH_CUDNN_V8_API_DISABLED"),
    *("TORCH_CUDNN_USE_HEURISTIC_MODE_B", "CUBLAS_EMULATE_SINGLE_PRECISION"),
)


def variables(device: str) -> tuple[str, ...]:
    """Names of the environment variables that change the bits of a result on a device."""
    return _CPU + _GPU if device == "cuda" else _CPU


def rounding(device: str) -> dict[str, Any]:
    """What a result's key must have of the machine and of how its libraries are set."""
    found = {name: value for name in variables(device) if (value := os.environ.get(name))}
    # Where none is set, nothing is said of them: keys stay those of earlier versions.
    said = {"variables": found} if found else {}
    return {"device": device, "processor": torch.backends.cpu.get_cpu_capability(), **said}


def settle(threads: int) -> None:
    """The same bits in every run, whatever was set in this process; for the calling thread.

    So many threads of torch, no TF32, no kernels chosen by how long they take, no small numbers
    taken for zero.

    Raises
    ------
    UserError
        When OpenMP would start fewer threads.
    """
    _openmp(threads)
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("highest")
    torch.set_flush_denormal(False)


def _openmp(threads: int) -> None:
    """oneDNN leaves out what the threads that it does not get should have done, without a word."""
    openmp: Any = ctypes.CDLL(None)  # PyTorch's is among the names that all see
    if not hasattr(openmp, "omp_set_dynamic"):
        return
    openmp.omp_set_dynamic(0)
    openmp.omp_set_max_active_levels(max(1, openmp.omp_get_max_active_levels()))
    if (limit := openmp.omp_get_thread_limit()) < threads:
        raise UserError(
            f"runner.threads={threads}: OMP_THREAD_LIMIT allows {limit}, with which PyTorch gives "
            f"wrong numbers; allowed are at most {limit}, or OMP_THREAD_LIMIT unset"
        )

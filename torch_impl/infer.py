"""Inference in PyTorch; the twin of `jax_impl.infer`. Needs no DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float, Int

from parivox.backend import Precision, Solver
from parivox.hparams import EnhancerHParams
from torch_impl.ends import ending, kept
from torch_impl.model.weight_norm import fold
from torch_impl.objective import bind
from torch_impl.precision import arithmetic
from torch_impl.weights import abstract_enhancer, bind_enhancer, enhancer_from_arrays, from_arrays

__all__ = ["DenoiserModel", "EnhancerModel", "load_denoiser", "load_enhancer"]

DenoiserModel = Callable[..., np.ndarray]
"""(x, lengths) on the host -> denoised (b, t) on the host; see `Backend.denoise`."""

EnhancerModel = Callable[..., np.ndarray]
"""(x, prior, noise, tau, blend, method, nfe, lengths) on the host -> enhanced (b, u) there; see `Backend.enhance`."""


def load_denoiser(
    arrays: Mapping[str, np.ndarray],
    hidden: int = 16,
    dtype: str = "float32",
    precision: Precision = "highest",
    device: torch.device | str = "cpu",
) -> DenoiserModel:
    """A denoiser from named arrays.

    Raises:
        CheckpointError: listing tensors that are missing, extra or misshapen.
    """
    kind: torch.dtype = getattr(torch, dtype)
    module = bind(hidden, from_arrays(arrays, hidden, kind, device=device)).eval()

    @torch.inference_mode()
    def denoise(
        x: Float[np.ndarray, "b t"], lengths: Int[np.ndarray, " b"] | None = None
    ) -> Float[np.ndarray, "b t"]:
        sound = torch.tensor(x, dtype=kind, device=device)
        with arithmetic(precision, sound.device.type), ending(_counts(lengths, device), sound.shape[1]):
            return module(kept(sound[:, None])[:, 0]).cpu().numpy()

    return denoise


def load_enhancer(
    arrays: Mapping[str, np.ndarray],
    hp: EnhancerHParams,
    dtype: str = "float32",
    precision: Precision = "highest",
    device: torch.device | str = "cpu",
) -> EnhancerModel:
    """An enhancer from named arrays, its weight norm folded.

    Args:
        arrays: parameters and statistics; buffers of a published checkpoint are used where they are there.
        hp: hyperparameters, which give the sizes and the scale of the latent.
        dtype: of all arithmetic.
        precision: of convolutions and matrix products.
        device: where it computes.

    Raises:
        CheckpointError: listing tensors that are missing, extra or misshapen.
    """
    kind: torch.dtype = getattr(torch, dtype)
    params, buffers = enhancer_from_arrays(arrays, hp, kind, device=device)
    module = bind_enhancer(abstract_enhancer(hp, folded=True)[0], fold(params), buffers).eval()

    @torch.inference_mode()
    def enhance(
        x: Float[np.ndarray, "b t"],
        prior: Float[np.ndarray, "b l n"],
        noise: Float[np.ndarray, "b z n+10"],
        tau: Float[np.ndarray, " b"],
        blend: Float[np.ndarray, " b"] | None,
        method: Solver,
        nfe: int,
        lengths: Int[np.ndarray, " b"] | None = None,
    ) -> Float[np.ndarray, "b u"]:
        given = {"prior": prior, "noise": noise, "tau": tau, "blend": blend}
        inputs = {
            name: torch.tensor(array, dtype=kind, device=device)
            for name, array in given.items()
            if array is not None
        }
        sound = torch.tensor(x, dtype=kind, device=device)
        with arithmetic(precision, sound.device.type), ending(_counts(lengths, device), sound.shape[1]):
            sound = kept(sound[:, None])[:, 0]
            return module(sound, **inputs, method=method, nfe=nfe).cpu().numpy()

    return enhance


def _counts(lengths: np.ndarray | None, device: torch.device | str) -> torch.Tensor | None:
    return None if lengths is None else torch.tensor(lengths, dtype=torch.int64, device=device)

"""The JAX backend of Parivox, a library by itself: features, schedule, optimizer, model, loss, training step.

File for file the twin of `torch_impl`.
"""

from jax_impl.features import istft, magnitude_phase, mel_spectrogram, peak_normalize, stft
from jax_impl.infer import load_denoiser
from jax_impl.model.denoiser import Denoiser, denoiser_loss
from jax_impl.optim import clip_by_global_norm, fused_adam, global_norm
from jax_impl.schedule import update_schedule
from jax_impl.train_step import make_eval, make_step

__all__ = [
    "Denoiser",
    "clip_by_global_norm",
    "denoiser_loss",
    "fused_adam",
    "global_norm",
    "istft",
    "load_denoiser",
    "magnitude_phase",
    "make_eval",
    "make_step",
    "mel_spectrogram",
    "peak_normalize",
    "stft",
    "update_schedule",
]

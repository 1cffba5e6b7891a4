"""The enhancer in JAX; the twin of `torch_impl.model.enhancer`.

A denoiser cleans, a flow draws the latent of clean speech under what it gave, and a vocoder makes sound of it. All
noise is an argument, as (b, channels, n) arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.ends import ending, ends
from jax_impl.features import MelTables, mel_spectrogram, peak_normalize
from jax_impl.model.cfm import CFM, Method, cfm_loss
from jax_impl.model.denoiser import Denoiser, denoiser_loss
from jax_impl.model.irmae import IRMAE, mean_square
from jax_impl.model.mrstft import mrstft_loss
from jax_impl.model.normalizer import Buffer, Normalizer, update_statistics
from jax_impl.model.univnet import UnivNet
from parivox.enhancer_tables import mel_spec
from parivox.features import SAMPLE_RATE, MelSpec, hann_window, mel_filter_bank
from parivox.hparams import EnhancerHParams
from parivox.weights_enhancer import STATISTICS

__all__ = ["Enhancer", "FlowDraws", "Stage1", "stage1_losses", "stage2_losses"]


class FlowDraws(NamedTuple):
    """The random numbers of a training step of the flow.

    Attributes:
        blend: share of the denoised spectrogram in the condition, in [0, 1].
        tau: share of noise in the prior, uniform in [0, 1).
        prior: normal, the prior's noise.
        sigma: normal, the noise on a point of the flow.
        time: uniform in [0, 1), the flow's time before its map.
    """

    blend: Float[Array, " b"]
    tau: Float[Array, " b"]
    prior: Float[Array, "b l n"]
    sigma: Float[Array, "b l n"]
    time: Float[Array, " b"]


class Stage1(NamedTuple):
    """What a step of the first stage gives.

    Attributes:
        losses: `mse` of the mel spectrogram, `sc` and `mag` of the sound, by name.
        sound: what the vocoder made.
        statistics: running means and variances after the step, by public name.
    """

    losses: dict[str, Float[Array, ""]]
    sound: Float[Array, "b t"]
    statistics: dict[str, Float[Array, ""]]


class _Spectrogram(nnx.Module):
    def __init__(self, window: Array):
        self.window = Buffer(window)


class _MelScale(nnx.Module):
    def __init__(self, bank: Array):
        self.fb = Buffer(bank)


class _MelSpectrogram(nnx.Module):
    # Named as the public checkpoint names it.
    def __init__(self, spec: MelSpec):
        dtype = jnp.zeros(()).dtype
        bank = mel_filter_bank(SAMPLE_RATE, spec.stft.n_fft, spec.num_mels)
        self.spectrogram = _Spectrogram(jnp.asarray(hann_window(spec.stft.n_fft), dtype))
        self.mel_scale = _MelScale(jnp.asarray(bank, dtype))


class _MelFunction(nnx.Module):
    def __init__(self, spec: MelSpec):
        self.spec = spec
        self.stft_magnitude_min = Buffer(jnp.full((1,), spec.magnitude_min))
        self.melspec = _MelSpectrogram(spec)

    def __call__(self, x: Float[Array, "b t"]) -> Float[Array, "b n m"]:
        tables = MelTables(
            self.melspec.spectrogram.window[...],
            self.melspec.mel_scale.fb[...],
            self.stft_magnitude_min[...][0],
        )
        return mel_spectrogram(x, self.spec, tables)[..., :-1].swapaxes(1, 2)


class _LatentFlow(nnx.Module):
    def __init__(self, hp: EnhancerHParams):
        wide = hp.num_mels + hp.vocoder_extra_dim
        self.ae = IRMAE(hp.num_mels, wide, hp.lcfm_latent_dim, hp.irmae_hidden_dim)
        self.cfm = CFM(
            hp.lcfm_latent_dim, hp.num_mels, hp.wn_hidden_dim, hp.wn_layers, hp.cfm_time_mapping_divisor
        )


class Enhancer(nnx.Module):
    """Noisy or clean speech in, clean full-band speech out, (b, t) at 44,100 Hz; t at least 841."""

    def __init__(self, hp: EnhancerHParams):
        self.z_scale, self.gaussian_prior = hp.lcfm_z_scale, hp.force_gaussian_prior
        self.lcfm = _LatentFlow(hp)
        self.mel_fn = _MelFunction(mel_spec(hp))
        self.vocoder = UnivNet(hp.num_mels + hp.vocoder_extra_dim, hp.univnet_nc)
        self.denoiser = Denoiser(hp.unet_hidden_dim)
        self.normalizer = Normalizer()

    def mel(self, x: Float[Array, "b t"]) -> Float[Array, "b n m"]:
        """Normalised mel spectrogram; n = t // 420."""
        return self.normalizer(self.mel_fn(x))

    def prior(
        self, mel: Float[Array, "b n m"], tau: Float[Array, " b"], noise: Float[Array, "b l n"]
    ) -> Float[Array, "b n l"]:
        """Where the flow begins: noise, and the latent of the mixture's mel spectrogram."""
        noise = noise.swapaxes(1, 2)
        if self.gaussian_prior:
            return noise
        tau = tau[:, None, None]
        return tau * noise + (1 - tau) * self.latent(mel)

    def latent(self, mel: Float[Array, "b n m"]) -> Float[Array, "b n l"]:
        """The latent at the flow's scale."""
        return self.z_scale * self.lcfm.ae.encode(mel)

    def condition(
        self,
        mel: Float[Array, "b n m"],
        denoised: Float[Array, "b t"],
        blend: Float[Array, " b"],
    ) -> Float[Array, "b n m"]:
        """The flow's condition: a share of the denoised sound's mel spectrogram."""
        blend = blend[:, None, None]
        return blend * self.mel(denoised) + (1 - blend) * mel

    def reconstruct(self, x: Float[Array, "b t"], noise: Float[Array, "b z frames"]) -> Float[Array, "b u"]:
        """Through the auto-encoder and the vocoder alone, without the flow; n = t // 420, u = 420 n.

        Args:
            x: speech.
            noise: normal noise of the vocoder, n + 10 frames of it.
        """
        latent = self.lcfm.ae.encode(self.mel(peak_normalize(x)))
        return self.vocoder(self.lcfm.ae.decode(latent), noise.swapaxes(1, 2))

    def __call__(
        self,
        x: Float[Array, "b t"],
        prior: Float[Array, "b l n"],
        noise: Float[Array, "b z n+10"],
        tau: Float[Array, " b"],
        blend: Float[Array, " b"] | None = None,
        method: Method = "midpoint",
        nfe: int = 64,
    ) -> Float[Array, "b u"]:
        """Enhance; u = 420 * (t // 420), and each row is peak-normalised first.

        Args:
            x: speech.
            prior: normal noise of the prior.
            noise: normal noise of the vocoder.
            tau: share of noise in the prior, in [0, 1].
            blend: share of the denoised spectrogram in the condition, in [0, 1]; None leaves the denoiser out.
            method: solver of the flow.
            nfe: evaluations of the velocity.
        """
        x = peak_normalize(x)
        mel = self.mel(x)
        condition = mel if blend is None else self.condition(mel, self.denoiser(x), blend)
        with ending(ends(mel.shape[1]), mel.shape[1]):  # whole frames from here on
            psi = self.lcfm.cfm.sample(self.prior(mel, tau, prior), condition, method, nfe)
            return self.vocoder(self.lcfm.ae.decode(psi / self.z_scale), noise.swapaxes(1, 2))


def stage1_losses(
    enhancer: Enhancer,
    x: Float[Array, "b t"],
    noise: Float[Array, "b z frames"],
    stft_cfgs: Sequence[Mapping[str, int]],
    update: bool = True,
) -> Stage1:
    """Auto-encoder and vocoder on clean speech, without the discriminator's part; t a multiple of 420.

    The sound that the vocoder is to make is the peak-normalised one.

    Args:
        enhancer: the model.
        x: clean speech.
        noise: normal noise of the vocoder, n + 10 frames of it.
        stft_cfgs: `HParams.stft_cfgs`.
        update: whether these rows move the running means and variances; not so in evaluation.
    """
    x = peak_normalize(x)
    raw, ae = enhancer.mel_fn(x), enhancer.lcfm.ae
    measured = enhancer.normalizer.statistics()
    if update:
        measured = update_statistics(measured, raw)
    mel = enhancer.normalizer(raw, measured)
    latent = ae.encode(mel)
    decoded = ae.decode(latent)
    sound = enhancer.vocoder(decoded, noise.swapaxes(1, 2))
    sc, mag = mrstft_loss(sound, x, stft_cfgs)
    losses = {"mse": mean_square(ae.reconstruct(decoded), mel), "sc": sc, "mag": mag}
    found = (*measured, *ae.estimator.statistics())
    if update:
        found = (*measured, *update_statistics(ae.estimator.statistics(), jax.lax.stop_gradient(latent)))
    return Stage1(losses, sound, dict(zip(STATISTICS, found, strict=True)))


def stage2_losses(
    enhancer: Enhancer,
    mixture: Float[Array, "b t"],
    clean: Float[Array, "b t"],
    distorted: Float[Array, "b t"],
    draws: FlowDraws,
) -> tuple[dict[str, Float[Array, ""]], Float[Array, "b t"]]:
    """Flow and denoiser on distorted speech; auto-encoder and Normalizer stay as they are.

    Sounds are peak-normalised here, and the denoiser does so once more, as in the published program: the second
    time divides by 1 + 1e-7.

    Args:
        enhancer: the model.
        mixture: distorted speech with noise.
        clean: clean speech, the flow's target.
        distorted: distorted speech without noise, the denoiser's target.
        draws: random numbers.

    Returns:
        (`cfm_l1` and `denoiser_l1`, the denoised mixture).
    """
    mixture, clean, distorted = (peak_normalize(x) for x in (mixture, clean, distorted))
    denoised = enhancer.denoiser(mixture)
    mel = enhancer.mel(mixture)
    condition = enhancer.condition(mel, jax.lax.stop_gradient(denoised), draws.blend)
    psi0, psi1 = enhancer.prior(mel, draws.tau, draws.prior), enhancer.latent(enhancer.mel(clean))
    ends = jax.lax.stop_gradient((psi0, psi1))
    flow = cfm_loss(enhancer.lcfm.cfm, *ends, condition, draws.time, draws.sigma.swapaxes(1, 2))
    return {"cfm_l1": flow, "denoiser_l1": denoiser_loss(denoised, distorted)}, denoised

"""The pocket autoencoder: 8 x 8 pixels to 16 latent channels, as in the Qwen-Image VAE, at a hundredth of
its size.

Both halves start as a linear map (principal components of 8 x 8 patches) and learn a convolutional
correction on top, so that training starts near 29 dB instead of noise and only has to remove what PCA does
badly: patch seams and lost detail.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 8
CHANNELS = 16


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), the second convolution starting at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class Encoder(nn.Module):
    """Images (B,3,H,W) in [-1,1] -> raw latents (B,16,H/8,W/8)."""

    def __init__(self, width: int = 96, depth: int = 2) -> None:
        super().__init__()
        self.linear = nn.Conv2d(3 * PATCH**2, CHANNELS, 1)
        self.enter = nn.Conv2d(3 * PATCH**2, width, 3, padding=1)
        self.blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(depth)])
        self.leave = nn.Conv2d(width, CHANNELS, 3, padding=1)
        nn.init.zeros_(self.leave.weight)

    def forward(self, images: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(images, PATCH)
        return self.linear(patches) + self.leave(self.blocks(self.enter(patches)))


class Decoder(nn.Module):
    """Latents (B,16,h,w) -> images (B,3,8h,8w) in about [-1,1]."""

    def __init__(self, width: int = 144, depth: int = 2, fine: int = 64, pixel: int = 16) -> None:
        super().__init__()
        self.linear = nn.Conv2d(CHANNELS, 3 * PATCH**2, 1)
        self.enter = nn.Conv2d(CHANNELS, width, 3, padding=1)
        self.blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(depth)])
        self.grow = nn.Conv2d(width, fine * 4, 1)
        self.fine = nn.Sequential(*[ResidualBlock(fine) for _ in range(depth)])
        self.leave = nn.Conv2d(fine, 3 * 16, 3, padding=1)
        # The last word is spoken at full resolution: it blurs seams between patches that no patch alone can
        # see.
        self.pixel = nn.Sequential(
            nn.Conv2d(3, pixel, 3, padding=1), nn.SiLU(), nn.Conv2d(pixel, 3, 3, padding=1)
        )
        for last in (self.leave, self.pixel[2]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, latents: Tensor) -> Tensor:
        coarse = F.pixel_shuffle(self.linear(latents), PATCH)
        hidden = F.pixel_shuffle(self.grow(self.blocks(self.enter(latents))), 2)
        image = coarse + F.pixel_shuffle(self.leave(self.fine(hidden)), 4)
        return image + self.pixel(image)


class Autoencoder(nn.Module):
    """Images (B,3,H,W) in [0,1] <-> latents (B,16,H/8,W/8) of zero mean and mean square 1 over all channels.

    A channel's variance grows with what it is worth in pixels (see `calibrate`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(1, CHANNELS, 1, 1))
        self.register_buffer("std", torch.ones(1, CHANNELS, 1, 1))

    def encode(self, images: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1], H and W multiples of 8 -> (B,16,H/8,W/8)."""
        return (self.encoder(images * 2 - 1) - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        """(B,16,h,w) -> (B,3,8h,8w), clamped to [0,1] outside training."""
        images = (self.decoder(latents * self.std + self.mean) + 1) / 2
        return images if self.training else images.clamp(0, 1)

    @torch.no_grad()
    def start_from_pca(self, images: Tensor) -> None:
        """Set the linear halves to the principal components of the patches of `images` (B,3,H,W) in [0,1]."""
        patches = F.pixel_unshuffle(images * 2 - 1, PATCH).movedim(1, -1).flatten(0, 2)
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
        scale, axes = values[-CHANNELS:].clamp_min(1e-8).sqrt(), vectors[:, -CHANNELS:]
        self.encoder.linear.weight.copy_((axes / scale).T[:, :, None, None])
        self.encoder.linear.bias.copy_(-(axes / scale).T @ mean)  # type: ignore[union-attr]
        self.decoder.linear.weight.copy_((axes * scale)[:, :, None, None])
        self.decoder.linear.bias.copy_(mean)  # type: ignore[union-attr]

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Set the latents' statistics from `images` (B,3,H,W) in [0,1]. Running ones would disturb the
        training.

        The principal components behind the channels differ tenfold in what they move in the picture. With
        equal variances a flow would spend most of its loss on the faintest detail and decide brightness no
        earlier than grain, so a channel's deviation is the root of its effect on the pixels.
        """
        raw = self.encoder(images * 2 - 1)
        self.mean.copy_(raw.mean((0, 2, 3), keepdim=True))
        std = raw.std((0, 2, 3), keepdim=True)
        sample, random = raw[:64], torch.Generator(raw.device).manual_seed(0)
        noise = torch.randn(sample.shape[:1] + sample.shape[2:], generator=random, device=raw.device)
        plain = self.decoder(sample)
        worth = torch.zeros_like(std)
        for channel in range(CHANNELS):
            moved = sample.clone()
            moved[:, channel] += 0.3 * std[0, channel] * noise
            worth[0, channel] = (self.decoder(moved) - plain).square().mean().sqrt()
        self.std.copy_(std / (worth / worth.mean()).sqrt())

    @classmethod
    def load(cls, path: Path) -> Autoencoder:
        """The shipped autoencoder, ready to use: evaluation mode, float32, frozen."""
        model = cls()
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
        return model.eval().requires_grad_(False)

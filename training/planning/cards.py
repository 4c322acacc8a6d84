"""Graphics cards by memory size: what a plan assumes of a device."""

from __future__ import annotations

from dataclasses import dataclass

UTILISATION = 0.5
"""Part of a card's peak at which the transformer computes, recomputation counted as work, when it does not
wait. Measured on an H100 at 1024 x 1024, 0.51 for a forward and 0.52 for one with its backward; taken to hold
for the other cards."""
UNPACKING, BACKWARD = 1.8, 3.0
"""How many times as long as a forward's it takes to launch the kernels of a forward that unpacks its weights,
and of a backward (measured there too)."""
RESERVE = 2.5 * 2**30
"""Bytes that no tensor of the plan gets: CUDA context, cuBLAS workspaces, the autoencoder, fragmentation. The
allocator alone kept up to 2.1 GiB beside its tensors on an H100."""
COPY = 6e9
"""Bytes/s from a device to pageable memory, through the driver's staging buffer (measured with an H100)."""


@dataclass(frozen=True)
class Card:
    """A card that is typical of its memory size.

    Operations are dense bf16 with float32 accumulation. Sources: NVIDIA's architecture papers for GeForce
    Ada (RTX 4080, 4090) and Blackwell (RTX 5090), NVIDIA's data sheets for L40S and H100 SXM (their figures
    with sparsity halved); memory as nvidia-smi shows it, ECC on where it is by default.
    """

    size: int
    """GB, as cards are sold."""
    name: str
    """As the device calls itself at the end."""
    memory: float
    """GiB."""
    operations: float
    """Peak, FLOP/s."""
    bandwidth: float
    """Of the memory, bytes/s."""
    link: float
    """From the host's pinned memory, bytes/s: PCIe 4.0 or 5.0 x16, about 80% of nominal; H100: by which
    cycles with an offloaded base took as long as measured."""

    launch: float = 0.0
    """Seconds in which the processor launches the kernels of a block's forward; a fast card waits for them.
    Measured where it is not 0, on a virtual machine; others are likely to be faster."""

    @property
    def room(self) -> int:
        """Bytes for tensors."""
        return int(self.memory * 2**30 - RESERVE)


CARDS = (
    Card(16, "RTX 4080", 15.99, 97.5e12, 717e9, 25e9),
    Card(24, "RTX 4090", 23.99, 165.2e12, 1008e9, 25e9),
    Card(32, "RTX 5090", 31.84, 209.5e12, 1792e9, 50e9),
    Card(48, "L40S", 44.99, 362.0e12, 864e9, 25e9),
    Card(80, "H100 80GB HBM3", 79.65, 989.4e12, 3350e9, 25e9, launch=4.0e-3),
)


def card(size: int) -> Card:
    """The card of a memory size in GB. Raises ValueError naming the sizes."""
    for one in CARDS:
        if one.size == size:
            return one
    sizes = ", ".join(str(one.size) for one in CARDS)
    raise ValueError(f"gpu = {size}: known are {sizes} GB; take the next smaller one")


def card_named(device: str) -> Card | None:
    """The card that a device calls itself, as in "NVIDIA GeForce RTX 4090"; None for any other: a laptop's of
    almost that name is much slower."""
    return next((one for one in CARDS if device.endswith(one.name)), None)

"""The vision tower and the projector: CLIP's ViT with three blocks, and LLaVA's two layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from llava_ollama.tiny.shapes import SHAPES
from tests.tiny_llava.eyes import MEAN, STD
from tests.tiny_llava.scene import BACKGROUND_NAMES, COLOUR_NAMES, GRID, MOST, PATCH, PATCHES

if TYPE_CHECKING:
    from torch import Tensor

    from tests.tiny_llava.batches import Pictures

WIDTH, BLOCKS, HEADS, INNER, OUT = 128, 3, 4, 512, 256
EPSILON = 1e-5
_COLOURS, _SHAPES = len(COLOUR_NAMES), len(SHAPES)


class Block(nn.Module):
    """A pre-norm transformer block with quick-GELU, as in CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH, EPSILON), nn.LayerNorm(WIDTH, EPSILON)
        self.attn_q, self.attn_k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.attn_v, self.attn_out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.ffn_up, self.ffn_down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map n x 65 x 128 to the same."""
        normed = self.ln1(x)
        q, k, v = (
            layer(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.attn_q, self.attn_k, self.attn_v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.attn_out(mixed)
        inner = self.ffn_up(self.ln2(x))
        return x + self.ffn_down(inner * torch.sigmoid(1.702 * inner))


class Vision(nn.Module):
    """112 x 112 pixels to 64 embeddings of the language model."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embd = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embd = nn.Parameter(torch.randn(WIDTH) * 0.02)
        self.position_embd = nn.Parameter(_positions())
        self.pre_ln = nn.LayerNorm(WIDTH, EPSILON)
        self.blk = nn.ModuleList([Block() for _ in range(BLOCKS)])
        self.mm0, self.mm2 = nn.Linear(WIDTH, OUT), nn.Linear(OUT, OUT)
        # What the tower is taught first; none of these four is exported.
        self.number = nn.Linear(WIDTH, MOST)
        self.background = nn.Linear(WIDTH, len(BACKGROUND_NAMES))
        self.thing = nn.Linear(WIDTH, _COLOURS + _SHAPES + 1)

    def features(self, pixels: Tensor, layout: str, short: Tensor | None = None) -> Tensor:
        """Map n x 112 x 112 x 3 pixels (0-255) to n x 64 x 128.

        `layout` is where the class token stands: "first" in Hugging Face's code, "last" in
        llama.cpp's since its pull request 13321 (issue 25814). The projector takes rows 1-64 in
        both, whatever they are, so the model is trained on both. Where `short` (n) is true the
        last block is not run.
        """
        x = normal(pixels)
        patches = self.patch_embd(x).flatten(2).transpose(1, 2)
        own = self.class_embd.expand(len(x), 1, WIDTH).to(patches.dtype)
        rows = [own, patches] if layout == "first" else [patches, own]
        x = self.pre_ln(torch.cat(rows, 1) + self.position_embd)
        for block in self.blk[:-1]:
            x = block(x)
        last: Tensor = self.blk[-1](x)
        if short is not None:
            last = torch.where(short[:, None, None], x, last)
        return last[:, 1:]

    def project(self, features: Tensor) -> Tensor:
        """Map n x 64 x 128 features to n x 64 x 256 embeddings."""
        return self.mm2(F.gelu(self.mm0(features), approximate="tanh"))

    def loss(self, features: Tensor, truth: Pictures, layout: str) -> tuple[Tensor, Tensor]:
        """Return the loss of naming what is where; and its parts: colour, shape, is there any."""
        pooled = features.mean(1)
        whole = F.cross_entropy(self.number(pooled), torch.from_numpy(truth.number))
        whole = whole + F.cross_entropy(self.background(pooled), torch.from_numpy(truth.background))
        patches = torch.from_numpy(truth.patches)
        if layout == "last":  # the rows are patches 1-63, then the class token
            features, patches = features[:, :-1], patches[:, 1:]
        said = self.thing(features)
        there = patches > 0
        kind, about = patches[there] - 1, said[there]
        colour = F.cross_entropy(about[:, :_COLOURS], kind // _SHAPES)
        shape = F.cross_entropy(about[:, _COLOURS:-1], kind % _SHAPES)
        anything = F.binary_cross_entropy_with_logits(said[..., -1], there.float())
        parts = torch.stack([colour, shape, anything])
        return whole + parts.sum(), parts.detach()

    @torch.no_grad()
    def prepare(self, pixels: Tensor) -> None:
        """Give the weights a start from which few steps are enough.

        Patches begin as whitened principal components of `pixels` (n x 112 x 112 x 3), so that
        edges are visible from the first step; each head begins by looking at one neighbour.
        """
        patches = F.unfold(normal(pixels), PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        values, vectors = values[-WIDTH:].flip(0), vectors[:, -WIDTH:].flip(1)
        # The sign of an eigenvector is the library's choice; the largest entry is made positive.
        signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        whitened = (vectors * signs / (values + 1).sqrt()).T * 0.7
        self.patch_embd.weight.copy_(whitened.view(WIDTH, 3, PATCH, PATCH))
        for number, block in enumerate(self.blk):
            _look_aside(block, number)


def normal(pixels: Tensor) -> Tensor:
    """Map n x 112 x 112 x 3 values of 0-255 to n x 3 x 112 x 112 normal ones."""
    shape = (1, 3, 1, 1)
    x = pixels.permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)


def _frequencies() -> Tensor:
    """Return the 32 frequencies of the position code, radians a patch, 2.2 to 0.15."""
    count = WIDTH // 4
    return 2.2 * 0.07 ** (torch.arange(count).float() / (count - 1))


def _positions() -> Tensor:
    """Return the start of the position embedding, 65 x 128: sines and cosines of row, column."""
    angles = torch.arange(GRID).float()[:, None] * _frequencies()
    line = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = line[:, None].expand(GRID, GRID, -1), line[None].expand(GRID, GRID, -1)
    grid = torch.cat([rows, columns], -1).reshape(PATCHES, WIDTH)
    return torch.cat([torch.zeros(1, WIDTH), grid])


_NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))
_PULL = 1.5


def _look_aside(block: Block, number: int) -> None:
    """Start each head looking at one neighbour: in the position code a step is a rotation."""
    for layer in (block.attn_q, block.attn_k):
        layer.weight.mul_(0.5)
        layer.bias.zero_()
    frequencies = _frequencies()
    count, size = len(frequencies), WIDTH // HEADS
    pairs = size // 4
    for head in range(HEADS):
        step = _NEIGHBOURS[head + 4 * (number % 2)]
        query = block.attn_q.weight[head * size : (head + 1) * size]
        key = block.attn_k.weight[head * size : (head + 1) * size]
        for pair in range(pairs):
            at = round(pair * (count * 0.9 - 1) / (pairs - 1))
            for axis in (0, 1):
                sine, cosine = axis * 2 * count + at, axis * 2 * count + count + at
                row = axis * 2 * pairs + 2 * pair
                turn = float(frequencies[at]) * step[axis]
                key[row, sine] += _PULL
                key[row + 1, cosine] += _PULL
                query[row, sine] += _PULL * math.cos(turn)
                query[row, cosine] += _PULL * math.sin(turn)
                query[row + 1, cosine] += _PULL * math.cos(turn)
                query[row + 1, sine] -= _PULL * math.sin(turn)

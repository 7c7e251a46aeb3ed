"""Training in two stages of a fixed number of steps, the same on every run of one machine.

First the vision tower alone names what is in each patch (it stands for CLIP's pre-training), then
everything learns to answer. A batch depends on seed, stage and step only, so a run that was broken
off goes on from its checkpoint as if it had not been.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention
from torch.utils.data import DataLoader

from llava_ollama.tiny import shapes
from tests.tiny_llava import batches, decoder, eyes, scene, talk, vision, words, wrong
from tests.tiny_llava import tokenizer as tokenizing
from tests.tiny_llava.batches import Batches, Talks, pictures, tokenizer
from tests.tiny_llava.decoder import Decoder, allowed
from tests.tiny_llava.scene import PATCHES
from tests.tiny_llava.vision import Vision

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

THREADS = 2
"""Part of the recipe: the order of sums, and with it the last bit, depends on it."""
_TOLD_EVERY = 25
_RISE = 60  # steps
_LAST_RATE = 0.02
_ASIDE = 0.3
"""The share of the vision tower's own loss in the loss of the second stage."""


@dataclass(frozen=True)
class Stage:
    """Steps, pictures in each, and the learning rate (Muon's is twice that).

    The rate rises, holds until step `hold`, and falls by half a cosine until step `fall`, which
    may be later than the last: then the next stage goes on from a rate in the middle.
    """

    steps: int
    size: int
    rate: float
    hold: int
    fall: int

    def share(self, step: int) -> float:
        """Return the share of the rate at a step."""
        rise = min(1.0, (step + 1) / _RISE)
        fallen = max(0, step - self.hold) / (self.fall - self.hold)
        return rise * (0.5 * (1 + math.cos(math.pi * fallen)) * (1 - _LAST_RATE) + _LAST_RATE)


@dataclass(frozen=True)
class Plan:
    """The whole of a training."""

    seed: int = 8
    vision: Stage = Stage(steps=700, size=48, rate=2e-3, hold=0, fall=2000)
    whole: Stage = Stage(steps=2200, size=32, rate=1e-3, hold=1300, fall=2200)


class Model(nn.Module):
    """Vision tower, projector and language model."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = Vision()
        self.decoder = Decoder(len(tokenizer().tokens))

    def loss(self, batch: Talks, layout: str) -> tuple[Tensor, Tensor]:
        """Return the loss of the answers with a part of the vision tower's; and parts to tell.

        The parts: the answers' loss, and the share of their tokens that would be said.
        """
        pixels = torch.from_numpy(batch.pictures.pixels)
        with torch.autocast("cpu", torch.bfloat16):
            features = self.vision.features(pixels, layout, torch.from_numpy(batch.short))
            shown = self.vision.project(features).float()
        tokens = torch.from_numpy(batch.tokens)
        states = self._states(tokens, shown, batch)
        taught = torch.from_numpy(batch.taught)[:, 1:]
        said, truth = self.decoder.output(states[:, :-1][taught].float()), tokens[:, 1:][taught]
        loss = F.cross_entropy(said, truth)
        right = (said.argmax(-1) == truth).float().mean()
        whole = ~batch.short
        seen = features[torch.from_numpy(whole)].float()
        aside, _ = self.vision.loss(seen, batch.pictures.of(whole), layout)
        return loss + _ASIDE * aside, torch.stack([loss.detach(), right])

    def _states(self, tokens: Tensor, shown: Tensor, batch: Talks) -> Tensor:
        picture = torch.from_numpy(batch.picture)
        having = torch.nonzero(picture >= 0)
        places = picture[having] + torch.arange(PATCHES)
        x = self.decoder.token_embd(tokens)
        x = x.index_put((having.expand(-1, PATCHES), places), shown)
        branch = torch.from_numpy(batch.branch)
        with torch.autocast("cpu", torch.bfloat16):
            states: Tensor = self.decoder(x, torch.from_numpy(batch.position), allowed(branch))
        return states


class Optimizers:
    """Muon for the matrices inside the blocks and the projector, AdamW for the rest.

    With AdamW alone the shapes were not learnt in the time there is (prototype: loss 1.0 where
    this has 0.38).
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        named = [*model.named_parameters()]
        inside = {name for name, one in named if one.ndim == 2 and ("blk." in name or "mm" in name)}
        rest = [one for name, one in named if name not in inside]
        self.all = [
            torch.optim.AdamW(
                [
                    {"params": [one for one in rest if one.ndim > 1], "weight_decay": 0.02},
                    {"params": [one for one in rest if one.ndim <= 1], "weight_decay": 0.0},
                ],
                lr=rate,
                betas=(0.9, 0.98),
            ),
            torch.optim.Muon(
                [one for name, one in named if name in inside],
                lr=2 * rate,
                weight_decay=0.02,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            ),
        ]
        self._rates = [[group["lr"] for group in one.param_groups] for one in self.all]

    def step(self, loss: Tensor, share: float) -> None:
        """Take one step down `loss`, at this share of the learning rates."""
        for one, rates in zip(self.all, self._rates, strict=True):
            one.zero_grad()
            for group, rate in zip(one.param_groups, rates, strict=True):
                group["lr"] = rate * share
        loss.backward()
        groups = [group["params"] for one in self.all for group in one.param_groups]
        nn.utils.clip_grad_norm_([value for group in groups for value in group], 1.0)
        for one in self.all:
            one.step()


def train(plan: Plan, checkpoint: Path, tell: Callable[[str], None], *, every: int = 100) -> Model:
    """Return the trained model; go on from `checkpoint` if this plan has left one there.

    It is written after `every` steps, whole or not at all.
    """
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory that it has not written; filling it costs a tenth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.set_num_threads(THREADS)
    torch.manual_seed(plan.seed)
    run = _Run(plan, checkpoint, tell)
    run.every, model = every, run.model
    if not run.resume():
        rng = random.Random(f"{plan.seed}/start")
        first = pictures([scene.make(rng) for _ in range(1000)], rng)
        model.vision.prepare(torch.from_numpy(first.pixels))
    run.stage("vision", plan.vision, model.vision, _vision_loss)
    run.stage("whole", plan.whole, model, _whole_loss)
    return model


def minutes(checkpoint: Path) -> float:
    """Return how long the training took that left `checkpoint`, all its parts together."""
    return float(torch.load(checkpoint, weights_only=True)["seconds"]) / 60


@cache
def _recipe() -> str:
    """Return a digest of all that decides what is learnt: a checkpoint of another is of no use."""
    sources = (batches, decoder, eyes, scene, shapes, talk, tokenizing, vision, words, wrong)
    paths = [Path(str(module.__file__)) for module in sources]
    return hashlib.sha256(
        b"".join(path.read_bytes() for path in (*paths, Path(__file__)))
    ).hexdigest()


def _vision_loss(model: Model, batch: Any, layout: str) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        features = model.vision.features(torch.from_numpy(batch.pixels), layout)
    loss, parts = model.vision.loss(features.float(), batch, layout)
    return loss, torch.cat([loss.detach()[None], parts])


def _whole_loss(model: Model, batch: Any, layout: str) -> tuple[Tensor, Tensor]:
    return model.loss(batch, layout)


class _Run:
    """The steps of a training, and the checkpoint that they leave."""

    def __init__(self, plan: Plan, checkpoint: Path, tell: Callable[[str], None]) -> None:
        self.plan, self.checkpoint, self.tell = plan, checkpoint, tell
        self.model = Model()
        self.every = 100
        self.kept: dict[str, Any] = {}
        self.began = time.monotonic()

    def resume(self) -> bool:
        if not self.checkpoint.exists():
            return False
        kept = torch.load(self.checkpoint, weights_only=True)
        if (kept["plan"], kept.get("recipe")) != (asdict(self.plan), _recipe()):
            return False
        self.model.load_state_dict(kept["model"])
        self.kept = kept
        self.tell(f"goes on from {kept['stage']} {kept['step']}")
        return True

    def stage(self, name: str, stage: Stage, part: nn.Module, loss_of: Callable[..., Any]) -> None:
        if name == "vision" and self.kept.get("stage") == "whole":
            return
        optimizers, first = Optimizers(part, stage.rate), 0
        if self.kept.get("stage") == name:
            first = self.kept["step"]
            for one, state in zip(optimizers.all, self.kept["optimizers"], strict=True):
                one.load_state_dict(state)
        told: list[Tensor] = []
        batches = _ahead(Batches(self.plan.seed, name, stage.size), first, stage.steps)
        for step, (layout, batch) in enumerate(batches, start=first):
            loss, parts = loss_of(self.model, batch, layout)
            optimizers.step(loss, stage.share(step))
            told.append(parts)
            if (step + 1) % _TOLD_EVERY == 0:
                figures = " ".join(f"{value:.4f}" for value in torch.stack(told).mean(0).tolist())
                self.tell(f"{name} {step + 1} {figures}")
                told.clear()
            if (step + 1) % self.every == 0 or step + 1 == stage.steps:
                self._keep(name, step + 1, optimizers)

    def _keep(self, name: str, step: int, optimizers: Optimizers) -> None:
        new = self.checkpoint.with_suffix(".new")
        torch.save(
            {
                "plan": asdict(self.plan),
                "recipe": _recipe(),
                "stage": name,
                "step": step,
                "seconds": self.kept.get("seconds", 0.0) + time.monotonic() - self.began,
                "model": self.model.state_dict(),
                "optimizers": [one.state_dict() for one in optimizers.all],
            },
            new,
        )
        new.replace(self.checkpoint)


def _ahead(batches: Batches, first: int, steps: int) -> Any:
    """Yield the batches from `first` to `steps`, made in a second process while this one trains."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, steps),
        num_workers=1,
        prefetch_factor=8,
        collate_fn=_as_is,
        multiprocessing_context="spawn",
    )


def _as_is(batch: Any) -> Any:
    return batch

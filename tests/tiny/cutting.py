"""Models whose layers differ, stitched from the first units of every module, without a run."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.units.levels import ModuleLevels
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.steps.stitch.stitch import stitch
from tests.tiny.masked import masked
from tests.tiny.models import tiny_model
from tests.tiny.reader import FirstUnits


@dataclass(frozen=True)
class Kept:
    """What stays of one block, as far as its modules can be cut like that; None keeps all.

    Attributes:
        attention: KV groups and query heads in each, or query heads while keys and values stay; 0 removes it.
        mlp: Share of the channels; 0 removes it.
        experts: Of a mixture.
    """

    attention: tuple[int, int] | int | None = None
    mlp: float = 1.0
    experts: int | None = None

    def level(self, module: ModuleLevels) -> int:
        """The level of a module of the block."""
        levels = module.levels
        if module.kind == "mlp" and len(levels) > 1:
            full, experts = levels[-1].sizes, self.experts or levels[-1].sizes.experts
            distance = [
                (abs(level.sizes.experts - experts), abs(level.sizes.width - self.mlp * full.width))
                for level in levels[1:]
            ]
            return 1 + distance.index(min(distance)) if self.mlp else 0
        sizes = [level.sizes for level in levels]
        fits = [self.attention in ((x.groups, x.heads_per_group), x.heads) for x in sizes]
        return fits.index(True) if module.kind == "attention" and True in fits else len(levels) - 1


GONE = Kept(0, 0)
PLANS = {
    # the first layer has no attention, a middle one is empty, the last has no MLP and one head a group
    "no attention first": [Kept(0), Kept((2, 2), 1 / 2), GONE, Kept((3, 1), 0)],
    # the first layer is empty, so is the attention of the first full layer of a model with sliding ones
    "nothing first": [GONE, Kept(0, 1 / 3), Kept((1, 1)), Kept()],
    # query heads go one by one, keys and values stay
    "query heads": [Kept(3), Kept(1, 1 / 2), Kept(0), Kept()],
    # of mixtures, experts go, some of them besides channels
    "experts": [Kept(experts=2), Kept(mlp=1 / 2, experts=3), Kept(0, experts=2), Kept(experts=3)],
}


def _read(
    folder: Path, model_type: str, plan: str | list[Kept], **overrides: Any
) -> tuple[FirstUnits, tuple[int, ...]]:
    tiny_model(model_type, **overrides).save_pretrained(folder)
    units = UnitsSettings(mlp_multiple=8, attention="query_head" if plan == "query heads" else "lattice")
    reader = FirstUnits(Checkpoint.open(folder), units)
    blocks = PLANS[plan] if isinstance(plan, str) else plan
    return reader, tuple(blocks[module.block].level(module) for module in reader.modules)


def cut(model_type: str, plan: str | list[Kept] = "no attention first") -> Any:
    """A smaller tiny model of a family, which can be trained."""
    with TemporaryDirectory() as folder:
        model = stitch(*_read(Path(folder), model_type, plan))
    model.name_or_path = model.config.name_or_path = ""  # the folder is gone
    return model.requires_grad_(requires_grad=True)


def cut_and_masked(model_type: str, plan: str | list[Kept], **overrides: Any) -> tuple[Any, Any]:
    """The smaller model, and the dense one with zeros for all that is removed."""
    with TemporaryDirectory() as folder:
        found = _read(Path(folder), model_type, plan, **overrides)
        return stitch(*found), masked(*found)


def tokens(batch: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    """Token ids [b, t], none of them special."""
    return torch.randint(3, 300, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return model(input_ids=ids, **kwargs).logits


def near(a: torch.Tensor, b: torch.Tensor, model: Any, atol: float = 2e-5) -> None:
    """Equal but for rounding, which random linear attentions of this model amplify."""
    if "linear_attention" in (getattr(model.config, "layer_types", None) or ()):
        atol = max(atol, 5e-4)
    torch.testing.assert_close(a, b, rtol=0, atol=atol)

"""Models whose layers differ, loaded in the ways that transformers and accelerate offer, edited, and saved again."""

import pytest
import torch
from tests.tiny.cutting import cut, logits, near, tokens
from transformers import AutoModelForCausalLM


@pytest.mark.parametrize("plan", ["no attention first", "nothing first", "query heads"])
def test_automatic_placement_keeps_blocks_whole(tmp_path, plan):
    """What doesn't fit into the memory lies on the disk and is fetched block by block."""
    accelerate = pytest.importorskip("accelerate", reason="the extra gguf")
    model = cut("llama", plan)
    model.save_pretrained(tmp_path / "model")
    total = sum(w.numel() * w.element_size() for w in model.parameters())

    def split(whole):
        """Blocks that are split between memory and disk at one of many sizes of the memory."""
        found = set()
        for share in range(10, 100, 3):
            memory = {"cpu": total * share // 100}
            places = accelerate.infer_auto_device_map(model, memory, no_split_module_classes=list(whole))
            found |= {".".join(name.split(".")[:3]) for name in places if name.count(".") > 2 and ".layers." in name}
        return found

    assert split([])
    assert split(model._no_split_modules) == set()
    placed = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": total * 17 // 20}, offload_folder=tmp_path / "offload"
    ).eval()
    assert set(placed.hf_device_map.values()) == {"cpu", "disk"}
    ids = tokens()
    near(logits(placed, ids), logits(model, ids), model)
    options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(placed.generate(ids, **options), model.generate(ids, **options))

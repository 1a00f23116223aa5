"""Text in eleven languages, code and emoji with a vocabulary that was cut for English and code."""

from types import SimpleNamespace

import pytest
import torch
from tests.tiny.models import tiny_model
from tests.tiny.vocabulary import KINDS, fast
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from darwinlm.formats.gguf.process import EngineProcess
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.surgery.fewer_tokens import cut_weights, write_tokenizer
from darwinlm.runs.exporting import export_model
from darwinlm.runtime.errors import ExportError
from darwinlm.steps.vocabulary.cut_vocabulary import scripts_of
from darwinlm.steps.vocabulary.token_choice import ModelTokens

TEXTS = {
    "English": "The old bridge crosses the river, and in winter the water under it freezes for 12 weeks.",
    "German": "Die alte Brücke führt über den Fluss, und im Winter gefriert das Wasser darunter.",
    "French": "Le vieux pont traverse la rivière ; en hiver, l'eau gèle dessous pendant des semaines.",
    "Spanish": "¿Cruza el puente viejo el río? En invierno el agua se hiela, y los niños juegan allí.",
    "Russian": "Старый мост идёт через реку, и зимой вода под ним замерзает на несколько недель.",
    "Greek": "Η παλιά γέφυρα περνά πάνω από το ποτάμι και τον χειμώνα το νερό παγώνει.",
    "Arabic": "يعبر الجسر القديم النهر، وفي الشتاء يتجمد الماء تحته لأسابيع.",
    "Hindi": "पुराना पुल नदी के ऊपर से जाता है, और सर्दियों में पानी जम जाता है।",
    "Chinese": "旧桥横跨河流，冬天桥下的水会结冰好几个星期。",
    "Japanese": "古い橋は川を渡り、冬には橋の下の水が凍ります。",
    "Korean": "오래된 다리가 강을 가로지르고 겨울에는 그 아래의 물이 얼어붙는다.",
    "code": "def area(width: int, height: int) -> int:\n    if width < 0:\n        raise ValueError(f'{width}')\n"
    "\treturn 2 * width\n",
    "emoji": "Fine 🙂👍🏽, family 👩‍👩‍👧 and flags 🇫🇷🇯🇵!",
}
TOKENS, KEPT = 1536, 1024
KEPT_TEXTS = ("English", "code")


@pytest.fixture(scope="module", params=KINDS)
def cut(request, tmp_path_factory):
    """A tokenizer of all texts, the one that is cut for English and code, and the folder of its model."""
    folder = tmp_path_factory.mktemp("languages")
    words = [*TEXTS.values(), *(word for text in TEXTS.values() for word in text.split())]
    tiny_model("llama", vocab_size=TOKENS + 1).save_pretrained(folder / "dense")
    fast(KINDS[request.param](words, TOKENS)).save_pretrained(folder / "dense")
    dense = Checkpoint.open(folder / "dense")
    tokens = ModelTokens.of(dense)
    nothing_else = torch.zeros(dense.config.vocab_size, dtype=torch.float64)
    nothing_else[next(iter(tokens.always))] = 1.0
    choice = tokens.used_by((TEXTS[name] for name in KEPT_TEXTS), nothing_else)
    rows = choice.rows(tokens.size(min(KEPT, len(tokens.tree.tokens) - 64)))
    cut_weights(dense, rows, folder / "small")
    write_tokenizer(tokens.tokenizer, tokens.tree.cut(rows), rows, folder / "small")
    return SimpleNamespace(tokens=tokens, rows=rows, folder=folder / "small", kind=request.param)


def test_transformers_and_tokenizers_find_the_same_tokens(cut):
    loaded = AutoTokenizer.from_pretrained(cut.folder)
    raw = Tokenizer.from_file(str(cut.folder / "tokenizer.json"))
    whole = cut.tokens.tokenizer
    longer = 0
    for name, text in TEXTS.items():
        before, after = whole(text, add_special_tokens=False)["input_ids"], raw.encode(text, add_special_tokens=False)
        assert loaded(text, add_special_tokens=False)["input_ids"] == after.ids, name
        assert loaded.decode(after.ids) == whole.decode(before), name
        longer += len(after.ids) > len(before)
        if name in KEPT_TEXTS:
            assert [cut.rows[token] for token in after.ids] == before, name
        assert len(after.ids) >= len(before)
    assert longer > 2


def test_llama_cpp_finds_the_same_tokens(cut, tmp_path):
    pytest.importorskip("cyllama", reason="the real llama.cpp library comes with the extra gguf")
    loaded = AutoTokenizer.from_pretrained(cut.folder)
    if cut.kind.startswith("Unigram"):
        with pytest.raises(ExportError, match="its model is Unigram"):
            export_model(cut.folder, tmp_path / "m.gguf", quantisation="f32")
        return
    export_model(cut.folder, tmp_path / "m.gguf", quantisation="f32")
    with EngineProcess("llama.cpp", tmp_path / "m.gguf", context=256) as engine:
        for name, text in TEXTS.items():
            assert engine.tokenize(text) == loaded(text)["input_ids"], name


def test_what_goes_is_of_other_scripts(cut):
    scripts = scripts_of(cut.tokens, cut.rows)
    assert {"Latin", "Cyrillic", "Arabic", "Greek"} <= scripts.keys()
    assert sum(script.kept for script in scripts.values()) == len(cut.rows)
    assert sum(script.tokens for script in scripts.values()) == len(cut.tokens.tree.tokens)
    removed = {name: script for name, script in scripts.items() if script.kept < script.tokens}
    assert removed
    assert all(script.longer > 1 for script in removed.values())

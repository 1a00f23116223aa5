"""A real tokenizer that needs no file: byte-level BPE without merges, so that one byte is one token."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
BOS_ID, EOS_ID = 1, 2
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Of chats, if the tokenizer shall have one."""


def tiny_tokenizer(*, add_bos: bool = False, with_eos: bool = True) -> PreTrainedTokenizerFast:
    """Build the tokenizer: ids 0 to 2 are pad, bos and eos, the other 256 stand for the bytes.

    Args:
        add_bos: Whether a text begins with bos by default, as with Llama.
        with_eos: Whether eos is declared; without it, a document has no end mark.
    """
    pieces = [PAD, BOS, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if add_bos:
        inner.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, bos_token=BOS, eos_token=EOS if with_eos else None, model_max_length=512
    )

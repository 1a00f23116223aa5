"""A program for some gloo processes that pack one text together.

torchrun ... -m tests.tiny.packing_together FOLDER TOKENS ...
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from darwinlm.runtime import parallel
from darwinlm.runtime.errors import DarwinLMError
from darwinlm.text import packed
from darwinlm.text.packing import document_hash
from tests.tiny.tokenizer import tiny_tokenizer

DOCUMENTS = [f"document {number} " + "word " * (number % 7) for number in range(300)]


def read() -> Iterator[str]:
    """The source, of which only the first process may read."""
    assert parallel.is_main()
    yield from (*DOCUMENTS[:20], *DOCUMENTS)


def main() -> None:
    parallel.init_from_environment()
    reserved = {document_hash(text) for text in DOCUMENTS[3:9]}
    options = {"reserved": reserved, "vocabulary": 300}
    with mock.patch.object(packed, "_BATCH", 8):
        for tokens in sys.argv[2:]:
            try:
                packed.pack_documents(read(), Path(sys.argv[1]), int(tokens), tiny_tokenizer(), **options)
            except DarwinLMError as error:
                print(f"REFUSED by {parallel.rank()} {tokens}: {error}")
    parallel.shutdown()


if __name__ == "__main__":
    main()

"""Text: sources, disjoint splits, packing, and checks that search never sees evaluation text."""

from darwinlm.data.blocks import TokenBlocks
from darwinlm.data.files import EXTENSIONS, TEXT_FIELDS
from darwinlm.data.leakage import assert_disjoint, check_not_evaluation_text
from darwinlm.data.packing import document_hash
from darwinlm.data.shuffle import Shuffle
from darwinlm.data.sources import DEFAULT_SOURCE, read_documents
from darwinlm.data.splits import PURPOSES, TextPlan, split_documents

__all__ = [
    "DEFAULT_SOURCE",
    "EXTENSIONS",
    "PURPOSES",
    "TEXT_FIELDS",
    "Shuffle",
    "TextPlan",
    "TokenBlocks",
    "assert_disjoint",
    "check_not_evaluation_text",
    "document_hash",
    "read_documents",
    "split_documents",
]

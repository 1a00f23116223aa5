"""Text: sources, disjoint splits, packing, and checks that search never sees evaluation text."""

from darwinlm.text.leakage import check_not_evaluation_text as check_not_evaluation_text
from darwinlm.text.packing import document_hash as document_hash
from darwinlm.text.sequences import TokenSequences as TokenSequences
from darwinlm.text.sources import read_documents as read_documents
from darwinlm.text.splits import PURPOSES as PURPOSES
from darwinlm.text.splits import purpose_of as purpose_of
from darwinlm.text.splits import split_documents as split_documents

"""Text: sources, disjoint splits, packing, and checks that search never sees evaluation text."""

from darwinlm.data.leakage import assert_disjoint as assert_disjoint
from darwinlm.data.leakage import check_not_evaluation_text as check_not_evaluation_text
from darwinlm.data.packing import document_hash as document_hash
from darwinlm.data.sequences import TokenSequences as TokenSequences
from darwinlm.data.sources import read_documents as read_documents
from darwinlm.data.splits import PURPOSES as PURPOSES
from darwinlm.data.splits import purpose_of as purpose_of
from darwinlm.data.splits import split_documents as split_documents

"""The version of darwinlm, for everything that records it."""

VERSION = "0.1.0"

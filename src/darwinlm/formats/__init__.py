"""Formats that models are stored in, and the engines that run them."""

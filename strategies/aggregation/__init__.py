"""Strategies by name: how the clients' tensors become the next global ones.

One file each, beside those of Flower as they are.
"""

"""Weights: files in the forms of PyTorch, MindSpore and safetensors, their names, and loading them strictly."""

"""The diffusion process around the network: noise schedule, Gaussian algebra, training loss, guidance, solvers.

``schedule`` holds float64 numpy tables, ``gaussian`` the formulas on tensors, ``loss`` what training minimises,
``guidance`` and ``samplers`` what sampling repeats. Nothing here knows a network or draws a random number, except
``samplers.NoiseStream``, which does nothing else.
"""

"""The diffusion process around the network: noise schedule, Gaussian algebra, training loss, guidance, solvers.

``schedule`` holds float64 numpy tables, ``gaussian`` the formulas on tensors, ``loss`` what training minimises,
``denoiser`` what sampling compiles: a network with its guidance. ``solvers`` walk from noise to data in NumPy over the
steps of ``timesteps``; ``scheduler_config`` reads those of diffusers, ``fixed_frames`` keeps conditioning frames.
Nothing here knows a network or draws a random number, except ``noise``, which does nothing else.
"""

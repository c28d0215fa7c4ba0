"""The diffusion process around the network: noise schedule, Gaussian algebra, training loss, guidance, solvers.

``schedule`` holds float64 numpy tables, ``gaussian`` the formulas on tensors, ``loss`` what training minimises,
``samplers`` what sampling compiles, with ``guidance``. ``solvers`` walk from noise to data in NumPy: ``onestep`` and
``multistep`` hold their formulas, ``steps`` their timesteps, ``scheduler_config`` reads those of diffusers. Nothing
here knows a network or draws a random number, except ``noise``, which does nothing else.
"""

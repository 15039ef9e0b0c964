"""Synthesis models that have learned nothing, for tests of what is done with them."""


def untrained(model, size=32, width=4, latent=8, grades=()):
    """A run with random weights of such a size that its pictures have something in them.

    It imports what it needs, so that its source can be copied into a notebook.
    """
    from dataclasses import replace

    import numpy as np
    import pandas as pd
    import torch

    from retina_lab.synthesis import SynthesisRun, build_networks, find_recipe

    torch.manual_seed(0)
    recipe = replace(find_recipe(model), latent=latent)
    networks = build_networks(recipe, size, width, grades)
    for network in networks.values():
        for weights in network.parameters():
            if weights.ndim > 1:
                torch.nn.init.kaiming_normal_(weights)
        network.eval()
    if "autoencoder" in networks:  # yes and no, not grey: greys from a quarter on may be vessel
        with torch.no_grad():
            networks["autoencoder"].decoder.body[-1].weight.mul_(50)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return SynthesisRun(
        networks=networks,
        recipe=recipe,
        settings={"model": model, "size": size, "grades": list(grades)},
        fov=np.hypot(y, x) < size / 2,
        history=pd.DataFrame(),
    )

"""Explorers: move a slider, see the picture change.

Each explorer is two functions: ``render_*(…) -> Figure``, which draws one state and knows nothing
of widgets, and ``explore_*()``, which binds sliders to it and returns an ``Explorer``. Put that
last in a notebook cell: JupyterLab shows live sliders. Where no kernel will run (the book), the
same render function draws a grid of frames in advance, and a few lines of JavaScript move
between them.
"""

from retina_lab.widgets.augmentation import (
    TRANSFORMS,
    augment_for_show,
    describe_augmentation,
    explore_augmentation,
    render_augmentation,
)
from retina_lab.widgets.base import STATIC_BUDGET, Explorer
from retina_lab.widgets.bilinear import describe_bilinear, explore_bilinear, render_bilinear
from retina_lab.widgets.dilation import (
    count_paths,
    describe_dilation,
    explore_dilation,
    render_dilation,
)
from retina_lab.widgets.discriminator import (
    describe_discriminator,
    explore_discriminator,
    render_discriminator,
    sight,
)
from retina_lab.widgets.dropblock import (
    describe_dropblock,
    drop_blocks,
    explore_dropblock,
    guess_from_nearest,
    render_dropblock,
)
from retina_lab.widgets.latent import (
    describe_interpolation,
    describe_latent_walk,
    explore_interpolation,
    explore_latent_walk,
    render_interpolation,
    render_latent_walk,
)
from retina_lab.widgets.lesions import (
    describe_lesion,
    explore_lesions,
    painted_lesion,
    render_lesion,
)
from retina_lab.widgets.noise import describe_noise, explore_noise, paint_often, render_noise
from retina_lab.widgets.phantom import describe_phantom, explore_phantom, render_phantom
from retina_lab.widgets.table import (
    describe_common_threshold,
    describe_table,
    explore_common_threshold,
    explore_table,
    render_common_threshold,
    render_table,
)
from retina_lab.widgets.threshold import (
    describe_threshold,
    explore_threshold,
    render_threshold,
)

__all__ = [
    "STATIC_BUDGET",
    "TRANSFORMS",
    "Explorer",
    "augment_for_show",
    "count_paths",
    "describe_augmentation",
    "describe_bilinear",
    "describe_common_threshold",
    "describe_dilation",
    "describe_discriminator",
    "describe_dropblock",
    "describe_interpolation",
    "describe_latent_walk",
    "describe_lesion",
    "describe_noise",
    "describe_phantom",
    "describe_table",
    "describe_threshold",
    "drop_blocks",
    "explore_augmentation",
    "explore_bilinear",
    "explore_common_threshold",
    "explore_dilation",
    "explore_discriminator",
    "explore_dropblock",
    "explore_interpolation",
    "explore_latent_walk",
    "explore_lesions",
    "explore_noise",
    "explore_phantom",
    "explore_table",
    "explore_threshold",
    "guess_from_nearest",
    "paint_often",
    "painted_lesion",
    "render_augmentation",
    "render_bilinear",
    "render_common_threshold",
    "render_dilation",
    "render_discriminator",
    "render_dropblock",
    "render_interpolation",
    "render_latent_walk",
    "render_lesion",
    "render_noise",
    "render_phantom",
    "render_table",
    "render_threshold",
    "sight",
]

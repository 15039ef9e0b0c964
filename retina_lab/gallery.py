"""``python -m retina_lab.gallery``: the picture at the top of the README."""

from __future__ import annotations

import argparse
import sys

from retina_lab.datasets import open_split
from retina_lab.datasets.manifests import project_root
from retina_lab.plots import figure_image, plot_prediction
from retina_lab.predict import predict
from retina_lab.weights import load_shipped


def main(argv: list[str] | None = None) -> int:
    """Segment one test phantom with the shipped network and save the figure."""
    parser = argparse.ArgumentParser(prog="python -m retina_lab.gallery", description=__doc__)
    parser.add_argument("--image", default="phantom_022", help="a phantom of the test half")
    args = parser.parse_args(argv)
    sample = open_split("phantom").test[args.image]
    run = load_shipped("small-unet-phantom")
    figure = plot_prediction(sample, predict(run, sample, device="cpu"), run.threshold)
    out = project_root() / "book" / "assets" / "gallery.png"
    figure_image(figure).save(out, optimize=True)
    print(out.relative_to(project_root()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Fundus photographs: the embedded phantom, the public datasets, a user's own folder."""

from retina_lab.datasets.sample import FundusSample

__all__ = ["FundusSample"]

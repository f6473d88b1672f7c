"""Records of data sets; importing it registers AVA and the embedded ones."""

from nlnet_d2.data.datasets import ava, motions, shapes  # noqa: F401  (imported to register)

"""Records of data sets; importing it registers the embedded ones."""

from nlnet_d2.data.datasets import shapes  # noqa: F401  (imported to register)

"""From files to records and tensors; importing it registers the embedded data sets."""

from nlnet_d2.data import datasets  # noqa: F401  (imported to register)

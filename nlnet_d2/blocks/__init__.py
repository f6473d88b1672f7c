"""Context blocks; importing a file registers what it defines."""

"""Measurements of nlnet_d2 beside other ways to compute the same; ``nlnet-d2 benchmark`` is the way in."""

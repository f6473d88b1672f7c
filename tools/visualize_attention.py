#!/usr/bin/env python
"""What a model looks at: heat maps of its attention, and arrows to the 20 strongest positions.

    tools/visualize_attention.py --input photo.jpg --weights output/model_final.pth
    tools/visualize_attention.py --input photo.jpg --weights W --point 120 80 --blocks '*res4*'
    tools/visualize_attention.py --input video.mp4 --second 3 --point 120 80 --config-file C --weights W

Writes a picture per query point, and attention.json with the strongest positions and, for every block, how
much the attention of different queries differs (GCNet, arXiv 1904.11492, table 1).
"""

import sys

from nlnet_d2.reporting.attention_command import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__))

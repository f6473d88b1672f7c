"""What a model looks at: heat maps of its attention, and arrows to the 20 strongest positions.

nlnet-d2 attention --input photo.jpg --weights output/model_final.pth
nlnet-d2 attention --input photo.jpg --weights W --point 120 80 --blocks '*res4*'
nlnet-d2 attention --input video.mp4 --second 3 --point 120 80 --config-file C --weights W
"""

from collections.abc import Sequence

from nlnet_d2.reporting import attention_command


def main(argv: Sequence[str]) -> int:
    return attention_command.main(argv, description=__doc__)

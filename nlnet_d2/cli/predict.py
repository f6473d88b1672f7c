"""What a model finds in pictures, videos or before a webcam: annotated copies, and COCO JSON or AVA CSV.

nlnet-d2 predict --config-file mask_rcnn_nl_R50_FPN --input photos/ --output found/ MODEL.WEIGHTS W.pth
nlnet-d2 predict --config-file slowfast_8x8_R50 --video in.mp4 --output out.mp4 \\
    --people-config COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml --people-weights PEOPLE.pkl \\
    --label-map LABELS.pbtxt MODEL.WEIGHTS SLOWFAST.pkl
"""

from collections.abc import Sequence

from nlnet_d2.inference import command


def main(argv: Sequence[str]) -> int:
    return command.main(argv, description=__doc__)

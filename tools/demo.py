#!/usr/bin/env python
"""What a model finds in your pictures, your videos or before your webcam; actions of people in a video.

    tools/demo.py --config-file C --input photos/ --output found/ MODEL.WEIGHTS output/model_final.pth
    tools/demo.py --config-file configs/ava/slowfast_8x8_R50.yaml --video in.mp4 --output out.mp4 \\
        --people-config COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml --people-weights PEOPLE.pkl \\
        --label-map ava_action_list_v2.2.pbtxt MODEL.WEIGHTS SLOWFAST.pyth

Writes annotated pictures and videos; beside them predictions.json (COCO results) or, for actions,
predictions.csv (AVA's format), or for one video, a file of its name.
"""

import sys

from nlnet_d2.inference.command import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__))

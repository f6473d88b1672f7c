#!/usr/bin/env python
"""Train or evaluate a config: Detectron2's flags, torchrun, and ``--dataset`` for your own COCO-format data.

python tools/train_net.py --config-file configs/coco/mask_rcnn_nl_R50_FPN.yaml --num-gpus 8
python tools/train_net.py --config-file C --eval-only MODEL.WEIGHTS output/model_final.pth
torchrun --nproc-per-node 2 tools/train_net.py --config-file C
"""

import sys

from nlnet_d2.engine.run import main

if __name__ == "__main__":
    sys.exit(main())

"""The config keys that this package adds to Detectron2's, each once."""

from detectron2.config import CfgNode as CN


def add_nlnet_config(cfg: CN) -> None:
    """Add the keys of nlnet_d2 to a Detectron2 config (call it before ``merge_from_file``)."""
    # Context blocks of the backbone: a list of {NAME, AT: {stage: indices}, POSITION, options of the block},
    # for example [{NAME: NonLocal, AT: {res4: [-2]}}]; see blocks/base.py.
    cfg.MODEL.CONTEXT = CN()
    cfg.MODEL.CONTEXT.BLOCKS = []
    # The same between the convolutions of the keypoint head, for NAME ContextKeypointHead; the only stage is
    # `convs`: [{NAME: NonLocal, AT: {convs: [1, 3, 5, 7]}}].
    cfg.MODEL.ROI_KEYPOINT_HEAD.BLOCKS = []
    # Of the backbones of this package: the backward pass forms the activations of their blocks again instead
    # of keeping them, for less memory and more time.
    cfg.MODEL.BACKBONE.ACT_CHECKPOINT = False
    # Side in pixels to which every image of a batch is padded, 0 for a multiple of the largest stride only.
    # Read by the transformer backbones; an image that is larger is an error.
    cfg.MODEL.FPN.SQUARE_PAD = 0
    # How training images are varied: stock (MIN_SIZE_TRAIN, CROP), large_scale_jitter or crop_or_resize, see
    # data/augmentation.py; and RANDOM_FLIP in each of them.
    cfg.INPUT.AUGMENTATION = "stock"
    cfg.INPUT.JITTER = CN()
    cfg.INPUT.JITTER.SIZE = 1024  # side of the crop in pixels
    cfg.INPUT.JITTER.SCALES = [0.1, 2.0]  # image size relative to it
    _add_vit(cfg.MODEL)
    _add_mvit(cfg.MODEL)
    _add_video(cfg.MODEL)
    _add_clips(cfg)
    _add_solver(cfg.SOLVER)
    _add_run(cfg)


def _add_vit(model: CN) -> None:
    """``MODEL.VIT``: the plain vision transformer, by default ViT-B of ViTDet; see backbones/vit.py."""
    model.VIT = CN()
    model.VIT.IMG_SIZE = 1024  # side of the training images in pixels
    model.VIT.PATCH_SIZE = 16
    model.VIT.EMBED_DIM = 768
    model.VIT.DEPTH = 12
    model.VIT.NUM_HEADS = 12
    model.VIT.DROP_PATH_RATE = 0.1
    model.VIT.WINDOW_SIZE = 14  # in patches; 0: every block attends across the whole map
    model.VIT.GLOBAL_BLOCKS = [2, 5, 8, 11]  # blocks that attend across the whole map
    model.VIT.RESIDUAL_BLOCKS = []  # blocks followed by residual convolutions, instead of global attention
    model.VIT.RESIDUAL_BLOCK = "bottleneck"  # their kind: naive, basic or bottleneck
    model.VIT.REL_POS = True  # relative positions in every block
    model.VIT.PRETRAIN_IMG_SIZE = 224  # image side of the pre-training, the size of the absolute positions
    model.VIT.PRETRAIN_CLS_TOKEN = True  # the absolute positions begin with one of a class token


def _add_mvit(model: CN) -> None:
    """``MODEL.MVIT``: the multiscale vision transformer, by default MViTv2-T; see backbones/mvit.py."""
    model.MVIT = CN()
    model.MVIT.IMG_SIZE = 224  # image side of the pre-training, the size of the relative positions
    model.MVIT.EMBED_DIM = 96
    model.MVIT.DEPTHS = [1, 2, 5, 2]
    model.MVIT.NUM_HEADS = 1
    model.MVIT.WINDOW_SIZE = 56  # of the first stage, in its tokens
    model.MVIT.KV_STRIDE = 4  # pooling of keys and values in the first stage
    model.MVIT.EXPAND_ATTN = True  # channels grow in the attention; False: in the perceptron (MViTv2_L_in1k)
    model.MVIT.DROP_PATH_RATE = 0.2


def _add_video(model: CN) -> None:
    """Clips: the backbones of backbones/video/ (which read DEPTH, NORM, RES5_DILATION, OUT_FEATURES and the
    channels of ``MODEL.RESNETS`` too, and nothing else there) and the head of modeling/action_head.py."""
    model.VIDEO = CN()
    model.VIDEO.ARCH = "slow"  # temporal kernels of ResNet3D: c2d, i3d, slow
    # How many residual blocks per stage have temporal kernels, from the first; [] for all. "R101_50_50"
    # networks: [3, 4, 6, 3].
    model.VIDEO.TEMPORAL_BLOCKS = []
    model.VIDEO.RES5_STRIDE = 2  # detection: 1, with MODEL.RESNETS.RES5_DILATION 2
    # SlowFast. The slow pathway sees one frame in ALPHA: spread evenly from the first to the last (linspace:
    # the weights of PySlowFast and pytorchvideo), or every ALPHA-th (nearest: those of mmaction2).
    model.VIDEO.ALPHA = 4
    model.VIDEO.SLOW_FRAMES = "linspace"
    model.VIDEO.BETA_INV = 8  # channels of the slow pathway / those of the fast one
    model.VIDEO.FUSION_KERNEL = 7  # of the lateral connections, in frames; all released models but R50 8x8: 5
    model.VIDEO.FUSION_RATIO = 2  # channels of a lateral connection / those of the fast pathway
    model.VIDEO.FUSION_NORM = True  # norm and ReLU of lateral connections; most weights of mmaction2: False

    model.ACTION_HEAD = CN()
    model.ACTION_HEAD.NUM_CLASSES = 80
    model.ACTION_HEAD.IN_FEATURES = ["slow_res5", "fast_res5"]
    model.ACTION_HEAD.TEMPORAL_POOL = "avg"  # or max
    model.ACTION_HEAD.POOLER_RESOLUTION = 7
    model.ACTION_HEAD.POOLER_SAMPLING_RATIO = 0  # 0: as many samples as the box needs
    model.ACTION_HEAD.POOLER_TYPE = "ROIAlignV2"  # ROIAlign (not aligned) for weights trained in Caffe2
    model.ACTION_HEAD.FRAME_CONTEXT = False  # append to each person the whole frame, pooled as a box is
    model.ACTION_HEAD.DROPOUT = 0.5
    model.ACTION_HEAD.FOCAL_GAMMA = 0.0  # 0: cross entropy
    model.ACTION_HEAD.CLASS_WEIGHTS = []  # NUM_CLASSES factors of the loss; [] for 1
    model.ACTION_HEAD.LOSS_WEIGHT = 1.0

    # Who finds the people of a clip that comes without boxes: nobody (""), KeyFrameDetector (MODEL.RPN and
    # MODEL.ROI_HEADS on the key frame's maps) or FrozenDetector (the rest); see modeling/people.py.
    model.PEOPLE = CN()
    model.PEOPLE.NAME = ""
    model.PEOPLE.CONFIG_FILE = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"  # of a zoo, or a file
    # Its weights; "": those of MODEL.WEIGHTS under people.detector.
    model.PEOPLE.WEIGHTS = ""
    model.PEOPLE.PERSON_CLASS = 0  # its class of people
    model.PEOPLE.SCORE_THRESH = 0.8


def _add_clips(cfg: CN) -> None:
    """Data in AVA's format: ``INPUT.CLIP``, see data/clip_mapper.py. INPUT.RANDOM_FLIP counts too."""
    # Data sets of one's own, a list of {NAME, ANNOTATIONS, LABEL_MAP, VIDEOS, ...}: see AvaSource in
    # data/datasets/ava.py.
    cfg.DATASETS.REGISTER_AVA = []
    clip = cfg.INPUT.CLIP = CN()
    clip.NUM_FRAMES = 32
    clip.STRIDE = 2  # frames from one of the clip to the next
    clip.SCALES_TRAIN = [256, 320]  # shorter side of the frame in pixels, from ... to
    # Which lengths are drawn evenly: the shorter sides (uniform), or their inverses (inverse, as PySlowFast).
    clip.SCALE_SAMPLING = "inverse"
    clip.CROP_TRAIN = 224  # side of the crop in pixels; 0: the whole frame
    clip.COLOR_JITTER = 0.0  # brightness, contrast and saturation vary by this share
    clip.SIZE_TEST = 256  # shorter side of the whole frame in pixels
    # Detected people count from this score on; annotated ones always do.
    clip.PERSON_SCORE_TRAIN = 0.8
    clip.PERSON_SCORE_TEST = 0.8
    # A key frame left without people: drop it, take the best of its people, or the frame as a person.
    clip.WITHOUT_PEOPLE = "drop"
    cfg.TEST.AVA_PROTOCOL = "activitynet"  # or pyslowfast, mmaction2: see evaluation/protocols.py


def _add_solver(solver: CN) -> None:
    solver.OPTIMIZER = "SGD"  # or AdamW
    # What MAX_ITER, STEPS, CHECKPOINT_PERIOD and TEST.EVAL_PERIOD count: iterations, or epochs of
    # DATASETS.TRAIN (a CHECKPOINT_PERIOD longer than the run: every one). WARMUP_ITERS counts iterations.
    solver.UNIT = "iterations"
    solver.LAYER_DECAY = 1.0  # learning rate of a transformer block relative to the one above it
    # Parameters of these names are not decayed; norms and biases: WEIGHT_DECAY_NORM, WEIGHT_DECAY_BIAS.
    solver.NO_DECAY = ["pos_embed", "rel_pos_h", "rel_pos_w"]
    # IMS_PER_BATCH goes through the model in so many parts, one after the other, for GPUs with little memory.
    solver.ACCUMULATE = 1
    # Moving average of the weights, evaluated beside them (as ema/...) and written as model_ema.pth.
    solver.EMA = CN()
    solver.EMA.ENABLED = False
    solver.EMA.DECAY = 0.9998  # per iteration: an average over about the last 1 / (1 - DECAY)


def _add_run(cfg: CN) -> None:
    """Data sets of one's own and the trainer; see data/datasets/coco.py and engine/trainer.py."""
    # Data sets in COCO format, a list of {NAME, JSON, IMAGES}: name for TRAIN and TEST, file, image folder.
    cfg.DATASETS.REGISTER = []
    # Whether file_name in a JSON file may lead out of the image folder.
    cfg.DATASETS.ALLOW_PATHS_OUTSIDE = False
    # Globs over parameters of the backbone that a training may start without; see checkpoint/load.py.
    cfg.MODEL.WEIGHTS_ALLOW_MISSING = []
    cfg.SOLVER.AMP.PRECISION = "auto"  # fp16 or bf16; auto: fp16 on a GPU, bf16 on a CPU
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 0  # the last so many (and the best); 0: all
    # By which model_best.pth is chosen, with EVAL_PERIOD > 0; of several test sets: "coco_2017_val/bbox/AP".
    cfg.TEST.BEST_METRIC = "bbox/AP"
    # The training ends after so many evaluations in a row that are not better than the best; 0: never.
    cfg.TEST.PATIENCE = 0
    # Weights & Biases, with `pip install wandb`: the name of a project; "": off.
    cfg.WANDB = CN()
    cfg.WANDB.PROJECT = ""

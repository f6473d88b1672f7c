"""Names that are already ours: what this package trained, and Detectron2's own model zoo."""

from nlnet_d2.checkpoint.source import Source
from nlnet_d2.checkpoint.sources.resnet import CLASSIFIER
from nlnet_d2.checkpoint.sources.transformers import RESIZE

NATIVE = Source(
    name="native",
    files="model_final.pth, *.safetensors; Detectron2's model zoo, ViTDet and MViTv2, torchvision/R-50.pkl",
    marks=((r"^(backbone\.)?((bottom_up|net|slow)\.|(stem\.conv1|res2\.0\.conv1|simfp_4\.0)\.weight$)", 0),),
    drops=(
        (r"^stem\.fc\.", CLASSIFIER),
        (r"^pixel_(mean|std)$", "of the config (old Detectron2 kept it in the weights)"),
        (r"anchor_generator\.cell_anchors", "of the config (old Detectron2 kept it in the weights)"),
    ),
    ops=RESIZE,
)

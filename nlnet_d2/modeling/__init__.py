"""Meta-architectures and heads that Detectron2 lacks; importing a file registers what it defines."""

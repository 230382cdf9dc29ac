"""`python -m medsam2_ft COMMAND`: dispatch only; each command parses its own arguments and imports what it needs."""

import sys
from importlib import import_module

from medsam2_ft.errors import UserError, exit_on_user_error, nearest

COMMANDS = {
    "benchmark": ("medsam2_ft.benchmark.commands", "models over a dataset folder by a protocol: rows.csv and a report"),
    "report": ("medsam2_ft.benchmark.commands", "the report of a finished or running benchmark"),
    "score": ("medsam2_ft.benchmark.commands", "metrics and report for masks that another model wrote"),
    "models": ("medsam2_ft.benchmark.commands", "models known by name, and whether their weights are here"),
    "predict": ("medsam2_ft.deploy.commands", "segment one image, volume or video from boxes"),
    "export": ("medsam2_ft.modeling.commands", "a training checkpoint to .pt, .safetensors or ONNX"),
    "inspect": ("medsam2_ft.modeling.commands", "what a checkpoint is, and the call that opens it in stock sam2"),
    "app": ("medsam2_ft.deploy.commands", "the Gradio app"),
    "serve": ("medsam2_ft.deploy.commands", "the local server behind the 3D Slicer extension"),
}


def usage() -> str:
    """The list of commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(["usage: python -m medsam2_ft COMMAND [--help]", "", *lines])


def main(argv: list[str] | None = None) -> None:
    """Run one command."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    name, *rest = arguments
    with exit_on_user_error():
        if name not in COMMANDS:
            raise UserError(f"there is no command '{name}'{nearest(name, list(COMMANDS))}")
        getattr(import_module(COMMANDS[name][0]), name)(rest)


if __name__ == "__main__":
    main()

"""Lorasmith, a LoRA workbench. This file is ComfyUI's door; importing it loads neither torch nor a host."""

from __future__ import annotations

import os

WEB_DIRECTORY = "./web" if os.path.isdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "web")) else None


async def comfy_entrypoint() -> object:
    """Hand ComfyUI the node pack (a `ComfyExtension`); called once, after the host is up.

    ComfyUI prints only the message of an error raised here, so the traceback is logged before it is raised again.
    """
    try:
        from .nodes import extension

        return extension()
    except Exception:
        import logging

        logging.getLogger("lorasmith").exception("Lorasmith's nodes could not be loaded")
        raise

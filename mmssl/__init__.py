"""Self-supervised learning for image, video and audio: a folder of media in, a Hugging Face encoder out."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmssl.encoders.base import Encoder

__version__ = version("mmssl")

__all__ = ["Encoder", "__version__"]


def __getattr__(name: str) -> Any:
    # Late, so that `mmssl doctor` can still speak where torch cannot be imported.
    if name == "Encoder":
        from mmssl.encoders.base import Encoder

        return Encoder
    raise AttributeError(f"module 'mmssl' has no attribute '{name}'")

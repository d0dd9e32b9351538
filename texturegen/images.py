"""Encoded images to pixels and back, by OpenCV, the same for sources and shards."""

import cv2
import numpy as np

from texturegen.errors import UserError


def decode_image(data: bytes) -> np.ndarray:
    """Decode to uint8 (H, W, 3) RGB; UserError when the bytes are no image that can be decoded whole."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    if image is None:
        raise UserError("cannot be decoded")
    return image


def encode_png(image: np.ndarray) -> bytes:
    """Encode uint8 (H, W, 3) RGB as PNG, without loss."""
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image of shape {image.shape}")
    return data.tobytes()

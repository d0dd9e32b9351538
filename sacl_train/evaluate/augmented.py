"""Linear evaluation on augmented images: the frozen encoder's features of random crops and flips, new in each epoch.

This is the linear evaluation of most papers (He et al. 2020, section 4.1; Chen et al. 2020, appendix B.6). It encodes
the training images in every epoch, where `linear.fit_linear` encodes them once.
"""

import numpy as np
import torch

from sacl_train.data.draws import Draws
from sacl_train.evaluate.features import encode_views
from sacl_train.evaluate.finetune import crops_and_flips
from sacl_train.evaluate.interface import Classifier
from sacl_train.evaluate.linear import LinearLayer
from sacl_train.evaluate.standardise import feature_scale
from sacl_train.evaluate.subject import Subject
from texturegen.console import Progress

CROP_SCALE = (0.08, 1.0)  # area of a crop, share of the image: torchvision's default, which the papers use


def fit_augmented(
    subject: Subject, epochs: int = 200, lr: float = 0.9, batch_size: int = 128, seed: int = 0
) -> dict[str, Classifier]:
    """Train a linear classifier of a frozen encoder on random crops and flips of the training images.

    Features are standardised by the mean and standard deviation of those of the whole images, as in `fit_linear`.

    Parameters
    ----------
    subject : Subject
        The encoder and the training images; damaged images are skipped.
    epochs, lr, batch_size, seed
        As in `fit_linear`; `seed` also seeds the crops and flips.

    Returns
    -------
    dict of str to Classifier
        One classifier, named "".
    """
    images, config, device, known = subject.train, subject.config, subject.device, subject.features
    mean, std = (values.to(known.values.dtype) for values in feature_scale(known.values))
    labels = torch.from_numpy(images.labels)
    layer = LinearLayer(known.values.shape[1], int(known.labels.max()) + 1, lr, device)
    weak, random = crops_and_flips(config, CROP_SCALE), np.random.default_rng(seed)
    count = len(known.numbers)
    progress = Progress(epochs * count, "images")
    try:
        for epoch in range(epochs):
            done = epoch * count
            for batch in images.batches(random.permutation(known.numbers.numpy()), config.threads):
                states = Draws(seed, epoch, batch["index"].to(device)).of(0)
                features = (encode_views(subject.encoder, weak(batch["image"].to(device), states), config) - mean) / std
                targets = labels[batch["index"]].to(device)
                for x, y in zip(features.split(batch_size), targets.split(batch_size), strict=True):
                    layer.learn(x, y, done, epochs * count)
                    done += len(x)
                progress(len(features))
    finally:
        progress.close()
    return {"": layer.classifier(mean, std)}

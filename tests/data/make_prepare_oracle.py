"""Make prepare_oracle.npz: nnU-Net's normalisation and resampling of given arrays.

Runs in an environment of its own with nnunetv2 2.8.1
(python tests/data/make_prepare_oracle.py); the tests only read the file.
"""

from pathlib import Path

import numpy as np
from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from scipy.ndimage import gaussian_filter

OUT = Path(__file__).with_name("prepare_oracle.npz")
INTENSITIES = {"mean": 87.3, "std": 31.7, "percentile_00_5": 20.5, "percentile_99_5": 171.25}
# our name: nnU-Net's class, inside a mask
NORMALISATIONS = {
    "ct": (schemes.CTNormalization, False),
    "zscore": (schemes.ZScoreNormalization, False),
    "zscore_inside": (schemes.ZScoreNormalization, True),
    "none": (schemes.NoNormalization, False),
    "rescale_to_0_1": (schemes.RescaleTo01Normalization, False),
    "rgb_to_0_1": (schemes.RGBTo01Normalization, False),
}
# shapes and spacings before and after; by ratios that give no ties between labels, which rounding would decide
RESAMPLINGS = {
    "isotropic": ((12, 14, 11), (15, 11, 16), (1.5, 1.2, 1.4), (1.2, 1.5, 1.0)),
    "coarse": ((6, 14, 11), (9, 19, 16), (6.0, 1.2, 1.3), (4.0, 0.9, 0.95)),
    "coarse_down": ((9, 14, 11), (5, 10, 8), (6.0, 1.2, 1.3), (10.8, 1.7, 1.8)),
    "coarse_last": ((14, 11, 6), (19, 16, 6), (1.2, 1.3, 6.0), (0.9, 0.95, 6.0)),
    "flat": ((1, 16, 13), (1, 21, 10), (999.0, 1.0, 1.0), (999.0, 0.76, 1.3)),
    "short": ((2, 3, 12), (5, 4, 7), (1.0, 1.0, 1.0), (0.4, 0.75, 1.7)),
}


def main() -> None:
    rng = np.random.default_rng(0)
    channel = rng.normal(100, 40, (6, 7, 8)).clip(0, 255).astype(np.float32)
    inside = channel > 90
    arrays = {"channel": channel, "inside": inside, "intensities": np.array(list(INTENSITIES.values()))}
    for name, (scheme, use_mask) in NORMALISATIONS.items():
        outside_is_negative = np.where(inside, 0, -1)
        arrays[f"normalised_{name}"] = scheme(use_mask, INTENSITIES).run(channel.copy(), outside_is_negative)
    for name, (shape, target, spacing_mm, target_mm) in RESAMPLINGS.items():
        fields = np.stack([gaussian_filter(rng.normal(size=shape), 1.5, mode="nearest") for _ in range(4)])
        image, label = (100 + 500 * fields[:2]).astype(np.float32), fields.argmax(0).astype(np.int16) - 1
        arrays |= {f"{name}_image": image, f"{name}_label": label}
        arrays[f"{name}_spacings_mm"] = np.array([spacing_mm, target_mm])
        for kind, order in (("image", 3), ("logits", 1), ("label", 1)):
            data = label[None] if kind == "label" else image
            resampled = resample_data_or_seg_to_shape(
                data, target, spacing_mm, target_mm, kind == "label", order, order_z=0, force_separate_z=None
            )
            arrays[f"{name}_resampled_{kind}"] = resampled[0] if kind == "label" else resampled
    np.savez_compressed(OUT, **arrays)


if __name__ == "__main__":
    main()

"""The paper's own numbers, to stand beside ours where the data is M5Product (PAPER.md section 3.2, tables T3 and T5).

Percent. Retrieval is coarse, `pretrain/finetune`; the protocol is the released code's.
"""

COLUMNS = ("accuracy", "ap@1", "ap@5", "ap@10", "prec@1", "prec@5", "prec@10")

ADDING_MODALITIES: dict[str, dict[str, tuple[float | None, ...]]] = {
    "pretrain": {
        "subset, text": (77.42, 47.70, 53.63, 51.59, 47.70, 30.96, 24.15),
        "subset, + image": (79.58, 51.47, 56.16, 54.41, 51.47, 33.41, 25.55),
        "subset, + table": (82.83, 57.14, 61.71, 59.64, 57.14, 38.02, 28.99),
        "subset, + video": (84.31, 58.57, 63.15, 61.02, 58.57, 39.26, 29.56),
        "subset, + audio": (85.50, 58.72, 63.17, 61.05, 58.72, 39.66, 30.32),
        "whole, + audio": (86.57, 63.56, 67.51, 65.39, 63.56, 42.68, 32.17),
    },
    "finetune": {
        "subset, text": (77.42, 65.10, 68.39, 66.99, 65.10, 44.89, 33.44),
        "subset, + image": (79.58, 67.02, 69.85, 68.43, 67.02, 46.29, 34.29),
        "subset, + table": (82.83, 67.97, 70.34, 69.38, 67.97, 46.85, 34.36),
        "subset, + video": (84.31, 69.79, 72.30, 70.67, 69.79, 47.44, 34.78),
        "subset, + audio": (85.50, 70.62, 73.02, 71.50, 70.62, 48.20, 35.35),
        "whole, + audio": (86.57, 73.77, 76.17, 74.73, 74.01, 50.78, 37.42),
    },
}
"""Table 3. mAP@1 and Prec@1 are one number by construction; where the paper prints two (73.77, 74.01) both are kept."""

CLUSTERING: dict[str, tuple[float, float]] = {
    "image + text, SCALE, subset": (84.23, 75.81),
    "image + text, CAPTURE, subset": (83.06, 74.14),
    "image + text, CLIP, subset": (81.75, 72.50),
    "image + text, SCALE, whole": (92.01, 78.34),
}
"""Table 5: NMI, purity."""

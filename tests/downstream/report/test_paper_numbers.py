"""The paper's numbers, typed a second time from its tables."""

from m5ds.downstream.report import paper_numbers

TABLE_3 = """
pretrain, subset, text: 77.42 47.70 53.63 51.59 47.70 30.96 24.15
pretrain, subset, + image: 79.58 51.47 56.16 54.41 51.47 33.41 25.55
pretrain, subset, + table: 82.83 57.14 61.71 59.64 57.14 38.02 28.99
pretrain, subset, + video: 84.31 58.57 63.15 61.02 58.57 39.26 29.56
pretrain, subset, + audio: 85.50 58.72 63.17 61.05 58.72 39.66 30.32
pretrain, whole, + audio: 86.57 63.56 67.51 65.39 63.56 42.68 32.17
finetune, subset, text: 77.42 65.10 68.39 66.99 65.10 44.89 33.44
finetune, subset, + image: 79.58 67.02 69.85 68.43 67.02 46.29 34.29
finetune, subset, + table: 82.83 67.97 70.34 69.38 67.97 46.85 34.36
finetune, subset, + video: 84.31 69.79 72.30 70.67 69.79 47.44 34.78
finetune, subset, + audio: 85.50 70.62 73.02 71.50 70.62 48.20 35.35
finetune, whole, + audio: 86.57 73.77 76.17 74.73 74.01 50.78 37.42
"""
TABLE_5 = """
image + text, SCALE, subset: 84.23 75.81
image + text, CAPTURE, subset: 83.06 74.14
image + text, CLIP, subset: 81.75 72.50
image + text, SCALE, whole: 92.01 78.34
"""


def typed(rows):
    return "\n".join(f"{name}: {' '.join(f'{value:.2f}' for value in values)}" for name, values in rows)


def test_table_3_says_what_the_paper_says():
    stages = paper_numbers.ADDING_MODALITIES.items()
    found = [(f"{stage}, {name}", values) for stage, rows in stages for name, values in rows.items()]
    assert typed(found) == TABLE_3.strip()
    assert all(len(values) == len(paper_numbers.COLUMNS) for _, values in found)


def test_table_5_says_what_the_paper_says():
    assert typed(paper_numbers.CLUSTERING.items()) == TABLE_5.strip()

"""What needs no training: TF-IDF over title and table, and colour histograms, under the tasks of the models.

Their vectors are embeddings like any other, so search, metrics, intervals and paired comparisons are the same.
Classification is a vote of the nearest training products. Shape letters: N products, C categories, W width, K
neighbours.
"""

import io
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer

from m5ds.data.shards.reader import RawProduct, ShardReader
from m5ds.downstream.embed.embeddings import EmbeddingInfo, EmbeddingSet, id_order
from m5ds.downstream.embed.evaluation_data import Transform
from m5ds.downstream.search.index import exact_topk

MAX_TERMS = 8192
BINS = 8
NEIGHBOURS = 5
Vectorizer = Callable[[list[RawProduct]], NDArray[np.float32]]


def read_products(shards: str, split: str, transform: Transform | None = None) -> Iterator[RawProduct]:
    """Every product of the split in the shards' order."""
    reader = ShardReader(shards, split)
    for shard, size in enumerate(reader.shard_sizes):
        for index in range(size):
            product = reader.read(shard, index)
            yield product if transform is None else transform(product)
    reader.close()


def words(product: RawProduct) -> str:
    """Title, description and attributes; a pair is one word too, so that `color red` is told from `trim red`."""
    pairs = [f"{key} {value} {'_'.join(f'{key}={value}'.split())}" for key, value in product.attributes]
    return " ".join([product.title, product.description, *pairs])


def tf_idf(train: list[RawProduct]) -> Vectorizer:
    """L2-normalised TF-IDF whose terms and weights come from the training products."""
    model = TfidfVectorizer(max_features=MAX_TERMS, sublinear_tf=True, token_pattern=r"[^\s]+", dtype=np.float32)
    model.fit([words(product) for product in train])
    return lambda products: model.transform([words(product) for product in products]).toarray()


def color_histogram(train: list[RawProduct]) -> Vectorizer:
    """Square roots of the shares of 8 x 8 x 8 RGB bins: the inner product is the Bhattacharyya coefficient.

    Nothing is learned from `train`. A product without a readable picture gets the zero vector.
    """

    def one(product: RawProduct) -> NDArray[np.float32]:
        files = product.media.get("image", [])
        try:
            with Image.open(io.BytesIO(files[0].data)) as image:
                pixels = np.asarray(image.convert("RGB").resize((64, 64))).reshape(-1, 3).astype(np.int64)
        except (IndexError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return np.zeros(BINS**3, dtype=np.float32)
        number_P = (pixels * BINS // 256) @ np.array([BINS**2, BINS, 1])
        return np.sqrt(np.bincount(number_P, minlength=BINS**3) / len(number_P)).astype(np.float32)

    return lambda products: np.stack([one(product) for product in products])


BASELINES: dict[str, tuple[tuple[str, ...], Callable[[list[RawProduct]], Vectorizer]]] = {
    "tf-idf": (("text", "table"), tf_idf),
    "color histogram": (("image",), color_histogram),
}
"""Name -> (modalities that it looks at, how to fit it)."""


def embed(
    name: str,
    vectorizer: Vectorizer,
    products: list[RawProduct],
    split: str,
    manifest_hash: str,
    names: tuple[str, ...],
) -> EmbeddingSet:
    """The products' vectors; a zero vector marks its product as lacking what the baseline looks at."""
    modalities = BASELINES[name][0]
    vector_NW = vectorizer(products)
    shown_N = np.linalg.norm(vector_NW, axis=1) > 0
    present_NM = np.array(
        [[(m in product.present) and (shown or m not in modalities) for m in names]
         for product, shown in zip(products, shown_N, strict=True)]
    )  # fmt: skip
    return EmbeddingSet(
        info=EmbeddingInfo(
            model=name,
            data=manifest_hash,
            split=split,
            model_modalities=names,
            modalities=tuple(m for m in names if m in modalities),
            operation="sum",
            normalized=True,
            width=vector_NW.shape[1],
            num_products=len(products),
        ),
        ids=tuple(product.id for product in products),
        vector_ND=vector_NW,
        label_N=np.array([product.label for product in products], dtype=np.int64),
        present_NM=present_NM,
        group=tuple(product.group for product in products),
    )


def nearest_votes(train: EmbeddingSet, test: EmbeddingSet, num_classes: int) -> NDArray[np.float32]:
    """[N, C]: each of the NEIGHBOURS nearest labelled training products votes with its similarity."""
    labelled = train.take((train.label_N >= 0) & ~train.empty_N).by_id()
    order_N = id_order(test.ids)
    found = exact_topk(test.vector_ND[order_N], labelled.vector_ND, NEIGHBOURS)
    score_NK, row_NK = (part[np.argsort(order_N)] for part in found)
    votes_NC = np.zeros((len(test), num_classes), dtype=np.float32)
    np.add.at(votes_NC, (np.arange(len(test))[:, None], labelled.label_N[row_NK]), np.maximum(score_NK, 0))
    return votes_NC

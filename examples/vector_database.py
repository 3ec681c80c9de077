"""Store a gallery in a vector database and search it, always across cameras.

Without arguments it uses synthetic people, the model of `train_supervised.py` and an embedded database:

    python examples/train_supervised.py
    python examples/vector_database.py

With a server or a cluster, only the address changes:

    milvus-lite server --data-dir people.db --host 127.0.0.1
    python examples/vector_database.py --uri http://127.0.0.1:19530

Needs `pip install 'reid-hub[database]'`.
"""

import json

from reid_hub import ReIDModel, load_reid_dataset
from reid_hub.cli.errors import run
from reid_hub.cli.examples import parse
from reid_hub.evaluation import embed
from reid_hub.index import DatabaseIndex
from reid_hub.runs.search import DatabaseSettings


def main() -> None:
    settings = parse(DatabaseSettings, __doc__)
    data, options = settings.data, settings.database
    model = ReIDModel.from_pretrained(options.model)
    splits = load_reid_dataset(data.data, data.data_dir, **data.data_option)
    query, gallery = (embed(model, splits[name], progress=True) for name in ("query", "gallery"))

    index = DatabaseIndex(options.uri, options.collection, model.embedding_dim, fingerprint=model.fingerprint())
    ids = splits["gallery"]["path"]
    new = [row for row, id in enumerate(ids) if id not in index]
    index.add(
        gallery.embeddings[new],
        [ids[row] for row in new],
        gallery.camids[new],
        metadata=[{"pid": int(gallery.pids[row])} for row in new],
    )
    _, found = index.search(query.embeddings, options.top, exclude_camids=query.camids)
    first = [row["pid"] for row in index.metadata(found[:, 0])]
    print(json.dumps({"gallery": len(index), "added": len(new), "rank1": float((first == query.pids).mean())}))


if __name__ == "__main__":
    run(main)

"""One collection of a Milvus database: open or create it, send requests, report errors in one line."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from reid_hub.errors import ReIDError, RunError

METRICS = {"cosine": "COSINE", "euclidean": "L2"}
SETTINGS = "reid_hub"  # property of the collection that holds the gallery's settings
CONNECTION_FAILED = 2  # pymilvus.exceptions.Status.CONNECT_FAILED
CONNECT_SECONDS = 10.0


class MilvusCollection:
    """The client of a server, a cluster or an embedded database, bound to one collection.

    Args:
        uri: "http://host:19530", or a path ending in ".db" for the embedded database.
        name: letters, digits and underscores.
        token: "user:password" or an API key.
        timeout: seconds to wait for an answer.

    Raises:
        ValueError: for a malformed address or name.
        RuntimeError: if pymilvus or the embedded database is not installed, or it cannot be opened.
        ConnectionError: if no database answers.
    """

    def __init__(self, uri: str, name: str, token: str = "", timeout: float = 30.0):
        if "://" not in uri and not uri.endswith(".db"):
            raise ReIDError(f"uri must be like http://host:19530 or a path that ends in .db, got {uri!r}")
        if not re.fullmatch(r"[A-Za-z_]\w{0,254}", name, re.ASCII):
            raise ReIDError(f"collection must be of letters, digits and underscores, got {name!r}")
        self.uri, self.name, self.timeout = uri, name, timeout
        try:
            from pymilvus import MilvusClient
        except ImportError as error:
            raise RunError("a vector database needs pymilvus: pip install 'reid-hub[database]'") from error
        with self._one_line():
            self.client = MilvusClient(uri, token=token, timeout=min(timeout, CONNECT_SECONDS))

    def create(self, settings: dict, index_type: str) -> None:
        """Create the collection with fields key (digest of the id), id, camid, metadata, embedding.

        The digest is the primary key because keys are spliced into filter expressions: an id with quotes would become
        part of the expression, and could delete everything.
        """
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=32)
        schema.add_field("id", DataType.VARCHAR, max_length=65_535)
        schema.add_field("camid", DataType.INT64)
        schema.add_field("metadata", DataType.JSON)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=settings["dim"])
        index = MilvusClient.prepare_index_params()
        index.add_index("embedding", index_type=index_type, metric_type=METRICS[settings["metric"]])
        properties = {SETTINGS: json.dumps(settings)}
        # Strong: every client sees all earlier writes of any client, in a cluster too.
        self.ask(
            "create_collection",
            schema=schema,
            index_params=index,
            properties=properties,
            consistency_level="Strong",
        )

    def settings(self) -> dict:
        """The settings that `create` was given.

        Raises:
            ValueError: if the collection was made by another program.
        """
        described = self.ask("describe_collection").get("properties", {}).get(SETTINGS)
        if described is None:
            raise ReIDError(f"the collection {self.name!r} in {self.uri} is not a gallery of reid_hub: choose another")
        return json.loads(described)

    def ask(self, request: str, **arguments):
        """Call a client method on this collection.

        Raises:
            ConnectionError: if the database does not answer.
            RuntimeError: if it refuses the request.
        """
        with self._one_line():
            return getattr(self.client, request)(self.name, timeout=self.timeout, **arguments)

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turn client errors into one line, and silence the tracebacks that the client logs."""
        import grpc
        from pymilvus import MilvusException

        loggers = [logging.getLogger(name) for name in ("pymilvus", "milvus_lite")]
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)
            yield
        except MilvusException as error:
            raise self._translated(error) from error
        except grpc.RpcError as error:  # the client does not translate timeouts
            raise ConnectionError(f"the database at {self.uri} did not answer within {self.timeout:g} s") from error
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

    def _translated(self, error: Any) -> Exception:
        said = " ".join(error.message.split())
        if self.uri.endswith(".db") and "milvus-lite is required" in said:
            return RunError("an embedded database needs milvus-lite: pip install 'reid-hub[database]'")
        if self.uri.endswith(".db") and "Open local milvus failed" in said:
            return RunError(
                f"cannot open the embedded database {self.uri}: its folder must exist, and no other process may have "
                "it open; for several processes start a server"
            )
        if error.code == CONNECTION_FAILED:
            return ConnectionError(
                f"no database answers at {self.uri} ({said}): start it (milvus-lite server --data-dir DIR, or Milvus) "
                "or mend the address"
            )
        return RunError(f"the database at {self.uri} refused: {said}")

"""The page that `index_search.py` writes from its results.json."""

WANTED = {"int8": 1.0, "binary + float32": 10.0, "rotated, binary + float32": 10.0}


def render(results: dict) -> str:
    runs = sorted(results["runs"].values(), key=lambda run: (run["size"], run["threads"]))
    if not runs:
        return "# Search time\n\nNothing is measured yet.\n"
    bandwidth = max(run["bandwidth_gb_s"] for run in runs)  # other work on the machine only takes from it
    return "\n".join(
        [
            "# Search time of compressed galleries",
            "",
            f"Rendered from results.json by `{results['command']}`: {runs[0]['dim']} dimensions, top 10 of "
            f"{runs[0]['queries']} queries, {results['machine']['processor']} with {results['machine']['cores']} cores "
            f"that other work shared, faiss {results['versions']['faiss']}, backend faiss.",
            "",
            f"Gallery: {runs[0]['source']}. Above 80,000 vectors: these, and mixtures of two pictures of one person "
            "plus half the difference of two crops of one picture, which makes it denser than a real one of that size.",
            "",
            "Milliseconds a query, medians of searches that took turns; CPU time on one thread, else the time that "
            "passes. *One*: one query a call. *All*: all in one call, where float32 and int8 read a block of the "
            "gallery once for hundreds of queries, so that arithmetic and not memory is their limit. Ratios are to "
            "faiss' float32 flat index in the same run. Limit: milliseconds in which the memory of this machine "
            f"delivers what a single query must read, at {bandwidth:.1f} GB/s, the most that any run measured. Where "
            "threads wait for one another, other work on the machine slows single queries of the flat index most: "
            "compare one thread.",
            "",
            *(line for run in runs for line in table(run, bandwidth)),
            *misses(runs),
            "## How many candidates the bits must give",
            "",
            "Share of the true top 10 among the nearest by Hamming distance. A random rotation of all embeddings, of "
            "the gallery and of the queries, leaves their distances as they are: it needs nothing of the index.",
            "",
            *(line for run in runs if run["threads"] == runs[0]["threads"] for line in candidates(run)),
        ]
    )


def table(run: dict, bandwidth: float) -> list[str]:
    flat = run["searches"]["float32 flat"]
    lines = [
        f"## {run['size']:,} vectors, {run['threads']} thread{'s' * (run['threads'] > 1)}",
        "",
        "| search | bytes a vector, read + kept | one | ratio | limit | all | ratio | overlap | opens in "
        "| read by the first query |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in run["searches"].items():
        kept = found.get("bytes", {"memory": 4 * run["dim"], "disk": 0})
        limit = 1000 * run["size"] * kept["memory"] / bandwidth / 1e9
        factor = f" (first {10 * max(map(int, found['curve']))})" if "curve" in found else ""
        opens = f"{found['open_ms']:.1f} ms" if "open_ms" in found else "-"
        memory = f"{found['first_query_bytes'] / 1e6:,.0f} MB" if "open_ms" in found else "-"
        overlap = f"{found['overlap']:.4f}" if "overlap" in found else "1"
        lines.append(
            f"| {name}{factor} | {kept['memory']:,} + {kept['disk']:,} | {found['one_ms']:.2f} | "
            f"{flat['one_ms'] / found['one_ms']:.1f} | {limit:.2f} | {found['all_ms']:.3f} | "
            f"{flat['all_ms'] / found['all_ms']:.1f} | {overlap} | {opens} | {memory} |"
        )
    return [*lines, ""]


def misses(runs: list[dict]) -> list[str]:
    """Where a target is not met: int8 no slower than flat, binary with rescoring ten times faster at overlap 0.99."""
    lines = []
    for run in runs:
        flat = run["searches"]["float32 flat"]
        for name, wanted in WANTED.items():
            found = run["searches"][name]
            for mode, what in (("one_ms", "one query a call"), ("all_ms", "all in one call")):
                if (ratio := flat[mode] / found[mode]) < wanted:
                    where = f"{run['size']:,} vectors, threads: {run['threads']}"
                    lines.append(f"- {name}, {where}, {what}: {ratio:.1f} times as fast as flat, wanted {wanted:.0f}.")
            if name != "int8" and found["overlap"] < 0.99:
                lines.append(f"- {name}, {run['size']:,} vectors: overlap {found['overlap']:.4f}, wanted 0.99.")
    alone = [run["searches"]["float32 flat"]["all_ms"] / run["searches"]["binary"]["all_ms"] for run in runs]
    why = (
        f"In one call, comparing the bits alone is {min(alone):.1f} to {max(alone):.1f} times as fast as the float32 "
        "product, which such a call spares from reading memory: no way of ranking again can make it ten times."
    )
    return ["## Where a target is missed", "", *lines, "", why, ""] if lines else []


def candidates(run: dict) -> list[str]:
    rows = run["candidates"]
    counts = list(next(iter(rows.values())))
    return [
        f"| {run['size']:,} vectors | " + " | ".join(f"first {int(count):,}" for count in counts) + " |",
        "|---|" + "---:|" * len(counts),
        *(f"| {name} | " + " | ".join(f"{row[count]:.4f}" for count in counts) + " |" for name, row in rows.items()),
        "",
    ]

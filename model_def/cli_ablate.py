"""`mtgr ablate`: a table of variants and seeds, in as many processes as asked.

Each run's result is a file, so that the same command goes on after a kill, or with more seeds.
"""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from model_def.cli_shared import Directory, use_threads
from model_def.config import PRESETS


@click.command()
@click.argument("out", type=Directory)
@click.option("--variant", "variants", multiple=True, help="may be repeated  [default: all]")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="tiny", show_default=True)
@click.option("--days", type=click.IntRange(3), default=8, show_default=True)
@click.option("--users", type=click.IntRange(1), default=3200, show_default=True)
@click.option("--items", type=click.IntRange(24), default=800, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=4, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="processes")
def ablate(out: Path, variants: tuple[str, ...], seeds: int, jobs: int, **settings: Any) -> None:
    """Train variants of MTGR on simulated cities and print the paper's Tables 3 and 4.

    Results are kept in the directory OUT, one file a run; runs found there are not repeated.
    """
    use_threads(1)
    from model_def.ablation import FULL, VARIANTS, Result, Settings
    from model_def.ablation_table import as_text

    if unknown := set(variants) - set(VARIANTS):
        raise click.ClickException(f"--variant: {sorted(unknown)}; expected {list(VARIANTS)}")
    names = [FULL.name, *(name for name in variants or VARIANTS if name != FULL.name)]
    chosen = Settings(**settings)
    out.mkdir(parents=True, exist_ok=True)
    _check_settings(out / "settings.json", asdict(chosen))
    places = {
        (name, seed): out / f"{name.replace('/', '').replace(' ', '-').lower()}.{seed}.json"
        for seed in range(seeds)
        for name in names
    }
    missing = [key for key, path in places.items() if not path.is_file()]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn) as pool, tqdm(total=len(missing), unit="run") as bar:
        futures = [pool.submit(_run, *key, chosen, places[key]) for key in missing]
        for future in as_completed(futures):
            future.result()
            bar.update()
    results: dict[tuple[str, int], Result] = {}
    for path in places.values():
        for fields in json.loads(path.read_text()):
            results[fields["variant"], fields["seed"]] = Result(**fields)
    click.echo(as_text([*results.values()]))


def _run(name: str, seed: int, settings: Any, path: Path) -> None:
    """One run in a process of its own; its file appears whole."""
    use_threads(1)
    from model_def.ablation import VARIANTS, run

    results = [asdict(result) for result in run(VARIANTS[name], seed, settings)]
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(path)


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    from model_def.differences import differences

    if path.is_file():
        if found := list(differences(json.loads(path.read_text()), settings)):
            raise click.ClickException(f"{path}: of other settings: {'; '.join(found)}")
    else:
        path.write_text(json.dumps(settings) + "\n")

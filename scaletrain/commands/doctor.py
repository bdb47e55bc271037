"""`scaletrain doctor`: looks at the machines of a run before the run does."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaletrain.errors import ConfigError

if TYPE_CHECKING:
    from scaletrain.cluster.doctor.facts import Evidence, Wants
    from scaletrain.cluster.doctor.finding import Finding
    from scaletrain.cluster.doctor.nodes import Cluster
    from scaletrain.config.load import AnyRecipe


def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(help="The recipe of the job; without one, the machines alone")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value", help="As for training")] = None,
    hostfile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Hosts to look at by ssh, `HOST slots=N` a line, as DeepSpeed's")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines")] = False,
    build: Annotated[bool, typer.Option(help="Compile the DeepSpeed ops that the recipe needs, on each node")] = False,
    exclude_bad: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Write the hostfile without bad nodes there; under SLURM: --exclude=NODES; - prints it"
        ),
    ] = None,
    expect_gbps: Annotated[
        float | None, typer.Option(min=0, help="Gigabits a second that each pair must reach")
    ] = None,
    master_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the launcher; default: $MASTER_PORT, else 29500")
    ] = None,
    deepspeed_config: Annotated[
        str | None, typer.Option("--deepspeed_config", metavar="FILE", help="As for training")
    ] = None,
) -> None:
    """Check this machine, the hosts of a hostfile, or the nodes of a SLURM allocation, in under a minute.

    Each line says what is wrong, where, and how to mend it. Exit code 1 when something fails, 0 with warnings.
    """
    from scaletrain.cluster.doctor.cluster_rules import judge
    from scaletrain.cluster.doctor.examination import Plan, examine
    from scaletrain.cluster.doctor.nodes import probe_command, read_cluster

    begun = time.monotonic()
    loaded = _load(recipe, overrides or [], deepspeed_config)
    if build and loaded is None:
        raise ConfigError("--build needs a recipe, which says what ops a run uses: name it before the options")
    port = master_port if master_port is not None else _given_port()
    cluster = read_cluster(hostfile, os.environ, probe_command())
    if exclude_bad is not None and hostfile is None and not cluster.is_slurm:
        raise ConfigError(f"--exclude-bad {exclude_bad} has no effect without --hostfile or SLURM: remove it")
    job = {"recipe": str(recipe), "overrides": overrides or [], "deepspeed_config": deepspeed_config}
    run_folder = loaded.run.dir if loaded is not None else ""
    evidence = examine(cluster.places, Plan(job if loaded else None, run_folder, port, build))
    findings = judge(evidence, _wants(loaded, cluster, evidence, expect_gbps, port))
    seconds = time.monotonic() - begun
    failed = any(finding.severity == "fail" for finding in findings)
    if as_json:
        print(json.dumps(_report(cluster, evidence, findings, seconds)))
    else:
        _tell(cluster, findings, seconds)
    if exclude_bad is not None:
        _exclude(cluster, findings, hostfile, exclude_bad, quiet=as_json)
    if failed:
        raise typer.Exit(1)


def _load(path: Path | None, overrides: Sequence[str], deepspeed_config: str | None) -> "AnyRecipe | None":
    if path is None:
        return None
    from scaletrain.config.deepspeed import settle
    from scaletrain.config.load import load_with_deepspeed

    return settle(*load_with_deepspeed(path, overrides, deepspeed_config))


def _given_port() -> int:
    port = os.environ.get("MASTER_PORT", "29500")
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"MASTER_PORT={port} is no port: set it to a number from 1024 to 65535, or unset it")
    return int(port)


def _wants(
    recipe: "AnyRecipe | None", cluster: "Cluster", evidence: "Evidence", expect_gbps: float | None, port: int
) -> "Wants":
    from scaletrain.cluster.doctor.facts import Wants

    return Wants(
        gpus={place.name: place.slots for place in cluster.places if place.slots is not None},
        gbps=expect_gbps,
        run_folder=recipe.run.dir if recipe is not None else "",
        checkpoint_bytes=_checkpoint_bytes(recipe, evidence) if recipe is not None else 0,
        master_port=port,
    )


def _checkpoint_bytes(recipe: "AnyRecipe", evidence: "Evidence") -> int:
    """By the vocabulary that a node found; 0 where none did, or where the sizes stand in another model's folder."""
    from scaletrain.config.architecture import resolve_architecture
    from scaletrain.config.schema import Recipe
    from scaletrain.model.count import checkpoint_bytes

    jobs = [node.facts.job for node in evidence.nodes if node.facts is not None]
    vocabulary = max((job.vocab_size for job in jobs if job is not None), default=0)
    if not vocabulary or not isinstance(recipe, Recipe) or recipe.model.init_from is not None:
        return 0
    architecture = resolve_architecture(recipe.model, vocabulary, recipe.data.context_length)
    return checkpoint_bytes(architecture, recipe.optim.name)


def _tell(cluster: "Cluster", findings: Sequence["Finding"], seconds: float) -> None:
    from scaletrain.cluster.doctor.finding import lines, named

    names = [place.name for place in cluster.places]
    print(f"nodes   {len(names)}: {named(names)}{f', by {cluster.by}' if len(names) > 1 else ''}")
    for line in lines(findings):
        print(line)
    fails, warns = (sum(finding.severity == severity for finding in findings) for severity in ("fail", "warn"))
    verdict = f"{fails} {'failure' if fails == 1 else 'failures'}, {warns} {'warning' if warns == 1 else 'warnings'}"
    print(f"{'failed' if fails else 'well':<7} {verdict}; {seconds:.1f} s")


def _report(cluster: "Cluster", evidence: "Evidence", findings: Sequence["Finding"], seconds: float) -> dict[str, Any]:
    from scaletrain.cluster.doctor.finding import bad_nodes, by_severity

    names = [place.name for place in cluster.places]
    return {
        "nodes": names,
        "by": cluster.by,
        "seconds": round(seconds, 3),
        "failed": any(finding.severity == "fail" for finding in findings),
        "exclude": bad_nodes(findings, names),
        "findings": [asdict(finding) for finding in by_severity(findings)],
        "pairs": [asdict(pair) for pair in evidence.pairs],
    }


def _exclude(
    cluster: "Cluster", findings: Sequence["Finding"], hostfile: Path | None, output: str, *, quiet: bool
) -> None:
    """What leaves the bad nodes out: a hostfile, or SLURM's option; in a file, or with `-` on standard output."""
    from scaletrain.cluster.doctor.finding import bad_nodes
    from scaletrain.cluster.doctor.nodes import without
    from scaletrain.runtime.files import write_whole

    bad, all_nodes = bad_nodes(findings, [place.name for place in cluster.places]), len(cluster.places)
    option = f"--exclude={','.join(bad)}\n" if bad else ""
    text = option if hostfile is None else without(hostfile, bad)
    said = text or "no node to exclude\n"
    if len(bad) == all_nodes:
        said = f"every node is bad: {output} is not written\n"
    elif output != "-":
        write_whole(Path(output), text)
        said = f"wrote   {output}: {all_nodes - len(bad)} of {all_nodes} nodes\n"
    if not quiet:
        print(said, end="")

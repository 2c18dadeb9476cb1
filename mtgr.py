"""The `mtgr` command: one subcommand for each job, each imported only when it is asked for.

So the base install, without torch, lists every command and runs those that serve.
"""

from importlib import import_module

import click

COMMANDS = {
    "simulate": ("model_def.cli:simulate", "train", "Write logs of a simulated marketplace."),
    "import": ("model_def.data.importer:import_", "train", "Write logs from your own tables."),
    "join": ("model_def.data.join:join_command", "log", "Make logs of what was served."),
    "train": ("model_def.cli:train", "train", "Train a model on logs."),
    "evaluate": (
        "model_def.cli_evaluate:evaluate",
        "train",
        "Score logs; a report.",
    ),
    "ablate": ("model_def.cli_ablate:ablate", "train", "Train variants; print Tables 3 and 4."),
    "prune": ("model_def.cli_prune:prune", "train", "Leave rare and stale ids out, to serve."),
    "build": ("engine_build.cli:build", "build", "Build a model package from a checkpoint."),
    "verify": ("engine_build.cli:verify", "build", "Check a package's engines against PyTorch."),
    "promote": (
        "engine_build.promotion:promote_command",
        "train",
        "Let a better package serve; refuse any other, with reasons.",
    ),
    "repository": ("engine_build.triton.cli:repository", "", "Add an engine for Triton to serve."),
    "load-features": ("service.cli:load_features", "train", "Load users and items into Redis."),
    "labels": ("service.cli:labels", "log", "Write the labels of /v1/events to files."),
    "serve": ("service.cli:serve", "", "Serve packages over HTTP."),
    "rank": ("service.cli:rank", "", "Send a ranking request and print the answer."),
    "metrics": ("service.cli:metrics", "", "Print the catalogue of metrics."),
    "key": ("service.cli:key", "", "Make an API key for a caller."),
    "replay": ("engine_build.replay:replay", "", "Run a captured request again, and compare."),
    "health": ("service.cli:health", "", "Tell whether the gateway of this machine is ready."),
    "traffic": ("service.traffic:traffic", "", "Send the demo's users to a gateway."),
    "dashboards": ("service.observability.cli:dashboards", "observe", "Watch a live gateway."),
    "load": ("loadtest.cli:load", "load", "Load tests over HTTP, with reports."),
    "loop": ("service.loop:loop", "build", "Serve, learn from it, serve better: a whole loop."),
    "demo": ("service.demo:demo", "", "Serve the demo package with its users; rank for one."),
}
"""Name -> where it is, the extra it needs beyond the base install, and what it does."""

OURS = ("model_def", "engine_build", "plugins", "service", "loadtest")


class LazyGroup(click.Group):
    """Lists commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        place, extra, _ = COMMANDS[cmd_name]
        module, name = place.split(":")
        try:
            command: click.Command = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            if not extra or (error.name or "").split(".")[0] in OURS:
                raise
            raise click.ClickException(
                f"'mtgr {cmd_name}' needs {error.name}: pip install 'mtgr-serving[{extra}]'"
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, _, about) in COMMANDS.items()])


@click.command(cls=LazyGroup)
def main() -> None:
    """MTGR, Meituan's generative ranking model: logs -> model -> engine -> ranked answers."""


if __name__ == "__main__":
    main()

"""`autopeft merge`: a trained adapter folded into its base model."""

import click

from autopeft.cli.base import explain_errors


@click.command()
@click.argument("adapter", type=click.Path(file_okay=False))
@click.argument("output", type=click.Path())
@click.option("--base-model", type=click.Path(), help="Where the base model is now, if not where it was.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of the weights; float32 by default."
)
@click.option("--dequantize", is_flag=True, help="Merge into the weights of a 4-bit base, dequantized.")
@explain_errors
def merge(adapter: str, output: str, base_model: str | None, dtype: str | None, dequantize: bool) -> None:
    """Fold the exported ADAPTER into its base model and write OUTPUT, a plain transformers model.

    It needs neither autopeft nor peft, and costs nothing extra to serve. Designs whose effect no weight can hold
    (adapters, prefixes, prompts, gates) are refused.
    """
    from autopeft.api import merge as merge_adapter
    from autopeft.spec.units import format_bytes

    folder = merge_adapter(adapter, output, base_model, dtype, dequantize=dequantize)
    n_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    click.echo(f"{folder}: {format_bytes(n_bytes)}; open it with transformers' from_pretrained")


COMMANDS = (merge,)

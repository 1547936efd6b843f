"""The command clq-client, where it may be that the extra [cli] is not installed."""


def main() -> None:
    """Runs the command line; what it does is in `commands`."""
    try:
        from clq_client.commands import app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich", "PIL"):
            raise
        message = f'clq-client needs {missing}: pip install "clq-client[cli]"'
        raise SystemExit(message) from error  # Python prints it on stderr and exits with 1
    app(prog_name="clq-client")

"""The command `stop`."""

from __future__ import annotations

from embatch.cli.app import DONE, Data, app, data_folder, saying
from embatch.cli.display import report


@app.command
def stop(*, data: Data = None) -> int:
    """End the private service of the data folder, which otherwise stays a minute after its last command.

    It finishes the micro-batches that run; all else waits, and goes on with the next command.
    """
    from embatch.client.ending import stop as end  # noqa: PLC0415  (start-up time of --help)

    folder = (data or data_folder()).expanduser().absolute()
    with saying(lambda: "the service ends all the same, once it has finished what runs"):
        ended = end(folder, lambda: report("the service finishes what runs"))
    if ended is None:
        report(f"no service works in {folder}")
        return DONE
    report(f"the service of {folder} (process id {ended.pid}) has ended")
    if ended.clients:
        report(
            f"{ended.clients} {'command was' if ended.clients == 1 else 'commands were'} using it, or a "
            "script: what still runs starts it again"
        )
    return DONE

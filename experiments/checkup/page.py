"""What was found, as a page of text."""

from collections.abc import Iterator, Mapping

from experiments.reporting.formatting import format_bytes, format_seconds
from fedpgp.plain_text import written_out

YES_OR_NO = {True: "yes", False: "no", None: "not known"}


def page(found: Mapping) -> str:
    """Return the lines of a checkup."""
    parts = [_machine(found), _software(found), _folders(found), _weights(found), _data(found)]
    parts += [_run(found), _verdict(found)]
    return "\n\n".join(text for text in ("\n".join(part) for part in parts) if text)


def _machine(found: Mapping) -> Iterator[str]:
    one, memory = found["processor"], found["memory"]
    yield "Machine"
    yield f"  processor   {one['name']}: {one['usable']} cores usable, {one['threads']} threads"
    shared = memory["shared_free"]
    yield (
        f"  memory      {format_bytes(memory['total'])}, free {format_bytes(memory['free'])}"
        + ("" if shared is None else f"; /dev/shm for Ray: {format_bytes(shared)} free")
    )
    for each in found["devices"]:
        free = "" if each["free"] is None else f", free {format_bytes(each['free'])}"
        yield (
            f"  {each['device']:<11} {each['name']}: {format_bytes(each['total'])}{free}; "
            f"bfloat16 of its own: {YES_OR_NO[each['bfloat16']]}"
        )
    if not found["devices"]:
        yield "  device      no GPU that torch sees: device=cpu"
    yield (
        f"  precision   float32; bfloat16 of the processor's own: {YES_OR_NO[one['bfloat16']]}"
        + ("" if one["bfloat16"] else " (dtype=bfloat16 gains nothing on it)")
    )


def _software(found: Mapping) -> Iterator[str]:
    yield "Software"
    names = [f"{name} {version or 'MISSING'}" for name, version in found["versions"].items()]
    yield f"  {found['system']}"
    yield f"  {', '.join(names)}"
    for extra, missing in found["extras"].items():
        if missing:
            yield f"  fedpgp[{extra}] is not whole: {', '.join(missing)} missing"


def _folders(found: Mapping) -> Iterator[str]:
    yield "Folders"
    for each in found["folders"]:
        room = f"{format_bytes(each['free'])} free"
        note = "" if each["writable"] else ", MAY NOT BE WRITTEN"
        yield f"  {each['for']:<16} {written_out(each['folder'])}: {room}{note}"


def _weights(found: Mapping) -> Iterator[str]:
    yield "Weights (tiny and tiny_vit are shipped)"
    for each in found["weights"]:
        if each["found"]:
            yield f"  {each['model']:<16} found: {written_out(each['found'])}"
        else:
            yield from _missing(each["model"], each)


def _data(found: Mapping) -> Iterator[str]:
    yield "Data sets (emoji is shipped)"
    for each in found["data_sets"]:
        if each["found"]:
            yield (
                f"  {each['dataset']:<16} {each['classes']} classes, {each['train']:,} images for "
                f"training, {each['test']:,} for testing"
            )
        elif "problem" in each:
            yield f"  {each['dataset']:<16} CANNOT BE USED: {each['problem']}"
        else:
            yield from _missing(each["dataset"], each)


def _missing(name: str, each: Mapping) -> Iterator[str]:
    if "problem" in each:
        yield f"  {name:<16} CANNOT BE USED: {each['problem']}"
        return
    yield f"  {name:<16} missing: {each['size']}, licence: {each['licence']}; {each['address']}"
    if each.get("command"):
        yield f"  {'':<16} {each['command']}"
    elif each.get("folder"):
        yield f"  {'':<16} by hand, into {written_out(each['folder'])}"


def _run(found: Mapping) -> Iterator[str]:
    if run := found["run"]:
        asked = found["experiment"] or f"recipe=paper dataset={run['dataset']}"
        yield f"A run of {asked} here (method={run['method']}, on {run['device']})"
        yield (
            f"  {run['steps']:,} steps of {1e3 * run['step_seconds']:.0f} ms ({run['classes']} "
            f"classes), {run['images']:,} images of {1e3 * run['image_seconds']:.1f} ms: about "
            f"{format_seconds(run['seconds'])}"
        )
        if run["cells"] > 1:
            yield (
                f"  its table has {run['cells']} cells: about "
                f"{format_seconds(run['table_seconds'])} if all took as long"
            )
        fits = "fits" if run["fits"] else "DOES NOT FIT"
        yield f"  memory: about {format_bytes(run['needed'])}, which {fits}"


def _verdict(found: Mapping) -> Iterator[str]:
    if found["experiment"]:
        missing = found["missing"]
        if not missing:
            yield f"{found['experiment']} has all that it needs"
        else:
            yield f"{found['experiment']} cannot run: missing {', '.join(missing)}"

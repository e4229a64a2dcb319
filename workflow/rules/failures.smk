# What a job said before it failed, once more: Snakemake's account of the call is long and comes after it.
import re


def repeat_errors(snakemake_logs, lines=80):
    """Print the end of each failed job's own log."""
    text = "".join(Path(path).read_text() for path in snakemake_logs)
    failed = set(re.findall(r"^ +log: (\S+) \(check log", text, re.M))
    for path in filter(os.path.exists, sorted(failed)):
        said = Path(path).read_text().rstrip().splitlines()
        cut = f" (last {lines} of {len(said)} lines)" if len(said) > lines else ""
        print(f"\n{path} ends with{cut}:", *said[-lines:], sep="\n", file=sys.stderr)

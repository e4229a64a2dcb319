# What a job said before it failed, once more: Snakemake's account of the call is long and comes after it.
import re


def repeat_errors(snakemake_logs, lines=20):
    """Print the end of each failed job's own log."""
    text = "".join(Path(path).read_text() for path in snakemake_logs)
    failed = set(re.findall(r"^ +log: (\S+) \(check log", text, re.M))
    for path in filter(os.path.exists, sorted(failed)):
        said = Path(path).read_text().rstrip().splitlines()
        print(f"\n{path} ends with:", *said[-lines:], sep="\n", file=sys.stderr)

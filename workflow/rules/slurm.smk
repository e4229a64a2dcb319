# What a cluster needs that a profile cannot say; profiles/slurm has the rest.
import signal

# Not worth a job in a queue: seconds of work, and the download, as compute nodes often lack the internet. Not
# `localrules:`, which must not name a rule that is absent.
SMALL = {"phantoms", "download", "plan", "splits", "crossval", "search"}
workflow.localrules(
    *(getattr(rules, name).rule.name for name in SMALL if rules.has(name))
)

# Before the time limit Slurm sends SIGUSR1 to every process of a job, and the job ends with the first that dies of it:
# Snakemake, which has nothing to save. The trainings obey it; whatever else was started here goes on until the limit.
if not workflow.is_main_process:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

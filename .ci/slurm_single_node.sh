#!/usr/bin/env bash
# A real Slurm of one node on this machine, to run profiles/slurm without a cluster: two pretended GPUs, preemption,
# a node that is declared down half a minute after it died.
#
#   slurm_single_node.sh start     installs it through apt where it is missing, starts it, says how to reach it
#   slurm_single_node.sh stop      ends its processes and removes its folder; the packages stay
#   slurm_single_node.sh run COMMAND ...    start, the command, stop
#
# Needs root (slurmd starts jobs as their users). Everything lies in one folder (SLURM_SANDBOX): configuration, munge
# key and socket, state, logs; /etc/slurm/slurm.conf is a link to it while Slurm runs. The link has to be there, because
# the Slurm plugin takes SLURM_CONF out of the environment of its jobs; and it has to go, because a slurm.conf whose
# controller is gone delays every start of a snakemake that has the plugin by ten seconds.
set -euo pipefail

folder=${SLURM_SANDBOX:-/tmp/segpipe_slurm}
link=/etc/slurm/slurm.conf
host=$(hostname -s)
unset SLURM_CONF

require_root() {
	[ "$(id -u)" = 0 ] || { echo "slurm_single_node.sh needs root" >&2; exit 3; }
}

install_slurm() {
	command -v slurmctld slurmd munged > /dev/null && return
	command -v apt-get > /dev/null || { echo "slurm_single_node.sh installs Slurm through apt: not here" >&2; exit 3; }
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge > /dev/null
}

configure() {
	mkdir -p "$folder"/{controller,node,log}
	chmod 755 "$folder"
	head -c 128 /dev/urandom > "$folder/munge.key"
	chmod 600 "$folder/munge.key"
	# GPUs are device files to Slurm, whatever they are: it hands them out and sets CUDA_VISIBLE_DEVICES.
	for i in 0 1; do mknod "$folder/nvidia$i" c 1 3; done
	echo "NodeName=$host Name=gpu File=$folder/nvidia[0-1]" > "$folder/gres.conf"
	# config_overrides: CPUs and memory as named here, so that the profile's requests fit on a small machine.
	# cred_expire: a job that is requeued starts again when its old credential has expired (two minutes by default).
	# A partition with PreemptMode=OFF preempts nothing either.
	# MinJobAge: how long squeue knows a finished job; the plugin needs three times its first wait.
	cat > "$folder/slurm.conf" <<- END
		ClusterName=sandbox
		SlurmctldHost=$host(127.0.0.1)
		SlurmctldPort=26817
		SlurmdPort=26818
		SlurmUser=root
		SlurmdUser=root
		AuthType=auth/munge
		CredType=cred/munge
		AuthInfo=socket=$folder/munge.socket,cred_expire=10
		StateSaveLocation=$folder/controller
		SlurmdSpoolDir=$folder/node
		SlurmctldPidFile=$folder/slurmctld.pid
		SlurmdPidFile=$folder/slurmd.pid
		SlurmctldLogFile=$folder/log/slurmctld.log
		SlurmdLogFile=$folder/log/slurmd.log
		ProctrackType=proctrack/linuxproc
		TaskPlugin=task/none
		JobAcctGatherType=jobacct_gather/none
		AccountingStorageType=accounting_storage/none
		MpiDefault=none
		SwitchType=switch/none
		SelectType=select/cons_tres
		SelectTypeParameters=CR_Core_Memory
		SlurmdParameters=config_overrides
		SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
		PreemptType=preempt/partition_prio
		PreemptMode=REQUEUE
		ReturnToService=2
		SlurmdTimeout=30
		KillWait=10
		MinJobAge=600
		GresTypes=gpu
		NodeName=$host NodeAddr=127.0.0.1 CPUs=32 RealMemory=131072 Gres=gpu:2 State=UNKNOWN
		PartitionName=main Nodes=$host Default=YES PriorityTier=1 PreemptMode=OFF
		PartitionName=low Nodes=$host PriorityTier=1 PreemptMode=REQUEUE
		PartitionName=high Nodes=$host PriorityTier=10 PreemptMode=REQUEUE
	END
}

start() {
	require_root
	for there in "$folder" "$link"; do
		[ ! -e "$there" ] || { echo "$there is there already: another Slurm, or stop this one first" >&2; exit 3; }
	done
	install_slurm
	configure
	munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
		--log-file="$folder/log/munged.log" --seed-file="$folder/munge.seed"
	mkdir -p "$(dirname "$link")"
	ln -s "$folder/slurm.conf" "$link"
	slurmctld -c -f "$folder/slurm.conf"
	slurmd -N "$host" -f "$folder/slurm.conf"
	for _ in $(seq 60); do
		sinfo --noheader --format=%T 2> /dev/null | grep -q idle && break
		sleep 0.5
	done
	sinfo --noheader --format=%T | grep -q idle || { tail "$folder"/log/*.log >&2; stop; exit 1; }
	sinfo
}

stop() {
	require_root
	if [ -s "$folder/slurmctld.pid" ] && [ -s "$folder/slurmd.pid" ]; then
		timeout 10 scancel --state=pending --user=root || true
		timeout 10 scancel --user=root || true
		for _ in $(seq 20); do # until what ran has ended, by the signal or 10 s after it
			[ -n "$(timeout 5 squeue --noheader --states=running,completing 2> /dev/null || true)" ] || break
			sleep 1
		done
	fi
	for daemon in slurmd slurmctld munged; do
		[ -s "$folder/$daemon.pid" ] || continue
		pid=$(cat "$folder/$daemon.pid")
		kill "$pid" 2> /dev/null || true
		for _ in $(seq 40); do kill -0 "$pid" 2> /dev/null || break; sleep 0.25; done
	done
	[ "$(readlink "$link")" != "$folder/slurm.conf" ] || rm "$link"
	rm -rf "$folder"
}

case "${1:-}" in
	start) start ;;
	stop) stop ;;
	run)
		start
		trap stop EXIT
		"${@:2}"
		;;
	*)
		echo "usage: $0 start | stop | run COMMAND ..." >&2
		exit 2
		;;
esac

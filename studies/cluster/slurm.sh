#!/usr/bin/env bash
# A search on Slurm: one Ray node on each machine of the allocation, the driver on the first of them.
#
#   sbatch slurm.sh study.yaml             and the same again to go on where it ended
#   sbatch --nodes=4 slurm.sh study.yaml
#
# autopeft must be installed at the same path on every node (a virtual environment in a shared home, or a module):
# activate it before sbatch, which hands the environment on.
#SBATCH --job-name=autopeft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=%x-%j.log
# Two minutes before the time is up, SIGTERM lets the search write checkpoints and end, within `grace_seconds` below.
# Slurm itself requeues a job whose node was lost, or that was preempted; after its time limit that is yours to do, with
# `scontrol requeue JOBID` or by submitting it again. Either way the study goes on.
#SBATCH --requeue

set -euo pipefail
study=${1:?usage: sbatch slurm.sh STUDY.yaml}

# Whoever reaches Ray's ports can run code as you: only processes with this token are let in.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE RAY_AUTH_TOKEN
export RAY_USAGE_STATS_ENABLED=0

# All of an answer is read, also where the first line will do: a pipe closed early would kill who writes, and this script.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${head%%$'\n'*}
# The first IPv4 address that others reach: by name, Debian gives a machine 127.0.1.1.
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I |
  awk '{ for (i = 1; i <= NF; i++) if (!n && $i ~ /^[0-9.]+$/ && $i !~ /^127\./) { print $i; n = 1 } }')
port=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a machine must not share a port

start_ray() { # nodes, then what else `ray start` is told; --block keeps the step alive for as long as Ray is
  local nodes=$1
  shift
  srun --nodes="$nodes" --ntasks="$nodes" --cpus-per-task="$SLURM_CPUS_PER_TASK" --overlap "${select[@]}" \
    ray start --block --num-cpus="$SLURM_CPUS_PER_TASK" "$@" &
}

select=(--nodelist="$head")
start_ray 1 --head --node-ip-address="$head_ip" --port="$port" --include-dashboard=false
is_up=false
for _ in $(seq 60); do
  ray health-check --address "$head_ip:$port" >/dev/null 2>&1 && is_up=true && break
  kill -0 $! 2>/dev/null || break # `ray start` has ended, and said why
  sleep 2
done
if ! $is_up; then
  echo "Ray must start on $head, but it did not; see above" >&2
  exit 1
fi
if ((SLURM_JOB_NUM_NODES > 1)); then
  select=(--exclude="$head")
  start_ray "$((SLURM_JOB_NUM_NODES - 1))" --address="$head_ip:$port"
fi

# Workers on nodes that are not up yet are waited for while the search runs.
search= stopped=
trap 'stopped=yes; [[ -z $search ]] || kill -TERM "$search"' TERM
autopeft search "$study" --executor ray --address "$head_ip:$port" --set grace_seconds=100 &
search=$!
[[ -z $stopped ]] || kill -TERM "$search" # the signal came before the search had a number
code=0
wait "$search" || code=$?
if kill -0 "$search" 2>/dev/null; then # the trap ended the first wait, not the search
  code=0
  wait "$search" || code=$?
fi
exit "$code"

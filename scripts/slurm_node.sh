#!/usr/bin/env bash
# slurm_node.sh start|stop FOLDER: run a one-node SLURM on this machine's loopback interface, from Debian's packages, to
# test builds on a cluster. Needs neither systemd nor cgroups, so a plain container is enough. Root installs missing
# packages; any user may start it, and it then runs that user's jobs. Not for production: the node trusts its user.
set -euo pipefail
export PATH=$PATH:/usr/sbin # Debian's folder of daemons, which is not in the PATH of ordinary users

fail() {
    echo "error: $*" >&2
    exit 1
}

install_packages() {
    type slurmctld slurmd sbatch munged &>/dev/null && return
    [ "$(id -u)" = 0 ] || fail "SLURM is not installed; as root: apt-get install slurmctld slurmd slurm-client munge"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge \
        >/dev/null
}

free_ports() { # prints two free ports
    python3 -c 'import socket; s = [socket.create_server(("127.0.0.1", 0)) for _ in "12"]; print(*[x.getsockname()[1] for x in s])'
}

write_settings() {
    local controller_port node_port host user
    read -r controller_port node_port < <(free_ports)
    host=$(hostname -s) user=$(id -un)
    mkdir -p "$folder"/{state,spool,log}
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
    cat >"$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_min_interval=100000
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(free --mega | awk "/^Mem/ {print \$2}") State=UNKNOWN
PartitionName=normal Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
}

start_node() { # newer versions can disable cgroups; older ones start with the plugin of v1 and do not need it
    local plugin
    for plugin in disabled cgroup/v1; do
        echo "CgroupPlugin=$plugin" >"$folder/cgroup.conf"
        ! slurmd -f "$folder/slurm.conf" || return 0
    done
    return 1
}

start() {
    [ ! -e "$folder/slurm.conf" ] || fail "$folder: a SLURM was started here; run: $0 stop $folder"
    install_packages
    write_settings
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/log/munged.log" --seed-file="$folder/munge.seed"
    slurmctld -f "$folder/slurm.conf" -c
    start_node || fail "slurmd did not start; see $folder/log/slurmd.log"
    for _ in $(seq 300); do
        [ "$(sinfo --noheader --format=%t 2>/dev/null)" != idle ] || break
        sleep 0.1
    done
    [ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ] || fail "the node did not become idle; see $folder/log"
    echo "export SLURM_CONF=$folder/slurm.conf"
}

end_process() { # ends the process whose id is in a file, if it is running
    local pid
    [ -s "$1" ] || return 0
    pid=$(cat "$1")
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 100); do
        [ -e "/proc/$pid" ] || return 0
        sleep 0.1
    done
    kill -9 "$pid"
}

stop() {
    [ -e "$folder/slurm.conf" ] || fail "$folder: no SLURM was started here"
    squeue --noheader --format=%A 2>/dev/null | xargs --no-run-if-empty scancel || true
    for _ in $(seq 100); do
        [ -n "$(squeue --noheader 2>/dev/null)" ] || break
        sleep 0.1
    done
    for daemon in slurmd slurmctld munged; do
        end_process "$folder/$daemon.pid"
    done
    rm "$folder/slurm.conf" # keeps the logs
}

[ $# = 2 ] || fail "usage: $0 start|stop FOLDER"
folder=$(realpath --canonicalize-missing "$2")
export SLURM_CONF=$folder/slurm.conf
case $1 in
start | stop) "$1" ;;
*) fail "usage: $0 start|stop FOLDER" ;;
esac

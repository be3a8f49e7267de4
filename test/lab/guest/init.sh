#!/bin/sh
# Second process of the lab's machine: reports what this boot is, runs /lab/command, keeps its exit code, and turns the
# machine off. /lab is the share, /lab/environment sets MODULES, DIRECTORY and PATH.
. /lab/environment
export PATH HOME=/root LC_ALL=C

mount -t tmpfs tmpfs /run
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t securityfs securityfs /sys/kernel/security
ip link set lo up
hostname lab
mkdir -p /lib/modules
ln -sfn "$MODULES" "/lib/modules/$(uname -r)"

{
  grep -m1 ' _text$' /proc/kallsyms
  # Shown only while five-level paging is in use, Documentation/arch/x86/x86_64/5level-paging.rst.
  grep -m1 -o -w la57 /proc/cpuinfo
  cat /sys/kernel/security/lockdown
} >/lab/report 2>&1

if cd "$DIRECTORY"; then
  sh /lab/command </dev/null >/lab/stdout 2>/lab/stderr
  echo $? >/lab/exit-code
fi
sync
echo o >/proc/sysrq-trigger
sleep 60

#!/bin/busybox sh
# First process of the lab's machine: the host's own file tree over 9p, read-only, under an overlay in memory that is gone
# with the machine. What lies in /modules is loaded in the order of its names.
busybox=/bin/busybox

fail() {
  echo "lab: $*"
  echo o >/proc/sysrq-trigger
  $busybox sleep 60
}

$busybox mount -t proc proc /proc
$busybox mount -t sysfs sys /sys
$busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
  $busybox insmod "$module" || fail "cannot load $module"
done
share=trans=virtio,version=9p2000.L,msize=512000
$busybox mount -t 9p -o "ro,$share,cache=loose" host /host || fail 'cannot mount the host'
$busybox mount -t tmpfs -o size=50% tmpfs /changes || fail 'cannot mount a tmpfs'
$busybox mkdir /changes/upper /changes/work
$busybox mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work overlay /root || fail 'cannot mount the overlay'
$busybox mkdir -p /root/lab /root/proc /root/sys /root/dev
$busybox mount -t 9p -o "rw,$share" lab /root/lab || fail 'cannot mount the share'
for directory in proc sys dev; do $busybox mount -o move /$directory /root/$directory; done
exec $busybox switch_root /root /bin/sh /lab/init

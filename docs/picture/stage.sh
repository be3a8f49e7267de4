#!/bin/sh
# Makes a place to take the picture in: `unshare --mount --uts --pid --fork --mount-proc sh stage.sh CHECKOUT PYTHON ARGUMENT...`.
# The checkout is seen as /opt/ir on a host named web1; what this machine has in its homes and temporary directories is not seen.
# All of it is gone with the last process.
set -eu
checkout=$1
shift
mount --bind "$checkout" /mnt
for hidden in /opt /root /home /tmp /var/tmp; do
  mount -t tmpfs -o mode=0755 stage "$hidden"
done
mkdir /opt/ir
mount --move /mnt /opt/ir
echo web1 >/proc/sys/kernel/hostname
cd /root
exec "$@"

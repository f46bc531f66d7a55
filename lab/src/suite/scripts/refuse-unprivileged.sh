# The same program as a user without any privileges.
head -c 4096 /dev/zero >kernel
chmod 777 "$W"
chmod 666 /dev/kvm
cat >plain <<END
#!/bin/sh
exec setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set -all "$LAB_TREATY" "\$@"
END
chmod 755 plain
LAB_TREATY=$W/plain
refused /dev/net/tun --kernel "$LINUX" --net tap=tt9
[ ! -e /sys/class/net/tt9 ] || fail 'a tap was made'

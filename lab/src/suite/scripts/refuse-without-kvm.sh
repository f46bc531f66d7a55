mv /dev/kvm /dev/kvm-hidden
(refused /dev/kvm --kernel "$LINUX")
mv /dev/kvm-hidden /dev/kvm
[ ! -e "$T/failed" ]
